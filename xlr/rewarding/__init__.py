"""Steps 1 to 3 of the method: prompts -> responses -> scores -> pairs."""
