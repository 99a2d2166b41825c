"""`xlr selftest`: a small run on a model of random weights proves what a new machine computes, and how fast."""
