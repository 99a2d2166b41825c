"""A run on Slurm: its jobs, their submission, and whether the cluster is ready."""
