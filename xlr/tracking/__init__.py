"""Metrics of training, in a file and in experiment trackers."""
