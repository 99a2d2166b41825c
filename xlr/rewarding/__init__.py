"""Steps 2 and 3 of the method. Reads responses; writes scores and pairs."""
