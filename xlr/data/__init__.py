"""What a run is given: reads prompts, preferences, tokenizers and chat templates; writes nothing."""
