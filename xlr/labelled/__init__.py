"""Held-out preferences: how often rewards prefer the better answer. Reads preferences and models."""
