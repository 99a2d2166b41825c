"""Step 4 of the method: pairs -> model."""
