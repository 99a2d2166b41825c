"""The data of the quickstart, and where its model comes from."""
