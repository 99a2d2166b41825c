"""A run directory: reads and writes its files, artefacts, leases, metrics, and pieces of work that resumes."""
