"""How conversations become token ids: chat templates, what belongs to a prompt, think blocks."""
