"""A run directory: its files, its artefacts, who writes them, and work that resumes."""
