"""The command line: `xlr` and its commands."""
