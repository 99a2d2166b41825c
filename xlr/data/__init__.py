"""What a run reads: prompts, preferences, chat templates and tokenizers."""
