"""Reads the data of a run: prompts and preference sets. Encodes text as tokens and detects flawed responses."""
