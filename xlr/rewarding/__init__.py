"""Steps 1 to 3 of the method. Reads prompts; writes responses, scores and pairs."""
