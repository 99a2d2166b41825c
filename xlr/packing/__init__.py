"""Responses packed into rows that share their prompt: the batch, its layout, its attention."""
