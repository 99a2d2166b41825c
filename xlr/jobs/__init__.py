"""A run on Slurm. Reads the stages that are not finished; submits jobs, writes `RUN/slurm/`, and checks the cluster."""
