"""What a run is given: reads prompts and preferences; writes nothing."""
