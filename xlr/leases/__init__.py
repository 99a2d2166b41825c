"""Leases: which process writes which artefact, and whether a process is alive."""
