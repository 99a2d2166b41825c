"""What alignment costs elsewhere: benchmarks of the package lm-eval. Command: `xlr benchmark`."""
