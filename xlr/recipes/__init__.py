"""Ready configurations."""
