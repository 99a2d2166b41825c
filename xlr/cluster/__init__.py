"""Where a run computes: Ray workers, training ranks and their launcher, signals, Slurm's commands."""
