"""Asking a judge about two answers: behind an endpoint, or in the Ray workers. Writes a cache of its verdicts."""
