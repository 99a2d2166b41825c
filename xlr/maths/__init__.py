"""Formulas: torch and the standard library only, per-example values out."""
