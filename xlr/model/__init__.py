"""Weights and what computes with them: reads model folders; gives samples and log-probabilities."""
