"""How conversations become token ids: chat templates, system messages, thinking."""
