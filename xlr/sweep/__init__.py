"""Several variants of one run: what they share is made once, and they are compared in one report."""
