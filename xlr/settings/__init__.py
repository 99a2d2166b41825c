"""Every setting of a run: its type and its default, how it is read from YAML, and how it is checked."""
