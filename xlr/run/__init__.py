"""The run directory: layout, files, artefacts with manifests, leases, and work that resumes."""
