"""Models: loading weights, computing log-probabilities and sampling responses, in Ray workers and in training."""
