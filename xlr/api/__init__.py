"""Runs and rewards from Python: `xlr.open` and `xlr.Reward`."""
