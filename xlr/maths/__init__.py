"""Formulas, as functions of tensors and numbers: per-example values out. Imports torch and the standard library."""
