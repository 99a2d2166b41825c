"""Step 1 of the method, and its check of room. Reads prompts; writes responses, and translations of them."""
