"""A run directory: reads and writes its files, artefacts, metrics, and pieces of work that resumes."""
