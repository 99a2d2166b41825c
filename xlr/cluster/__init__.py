"""Processes and machines: the pool of Ray workers, training ranks, signals, Slurm's commands."""
