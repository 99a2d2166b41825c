"""Step 4 of the method. Reads pairs; writes reference log-probabilities, checkpoints, the model and its metrics."""
