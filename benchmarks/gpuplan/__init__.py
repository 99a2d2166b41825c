"""The checks of `benchmarks/gpu.py`: kernels, scoring, training."""
