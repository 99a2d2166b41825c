"""A run on Slurm: its jobs, their submission, and checks of the cluster."""
