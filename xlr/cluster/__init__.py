"""Where a run computes: Ray workers, ranks, Slurm."""
