"""Implicit cross-lingual rewarding: preference alignment in languages without preference data."""

__version__ = "0.1.0"
