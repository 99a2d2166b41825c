"""Weights, and what computes beside them: log-probabilities and samples."""
