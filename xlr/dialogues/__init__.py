"""Questions of several turns, as in MT-Bench: models answer them, and the judge rates each answer."""
