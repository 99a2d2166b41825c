"""Everything a run left -> one page.

Reads the configuration of a run, its manifests and its artefacts; writes report.json, report.html and report.md.
"""
