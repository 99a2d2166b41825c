"""Asking a judge: what it is asked, behind an endpoint or in the Ray workers, and a cache of its verdicts."""
