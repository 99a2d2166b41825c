"""How much `xlr certify` looks at. The command line reads it, so that it imports nothing slow."""

from collections.abc import Sequence
from dataclasses import dataclass

PROMPTS, SAMPLES = 30, 4
"""Prompts of each language, and responses to each, if nothing else is said."""
RESCORED = 8
"""Prompts of each language that are scored in both precisions."""


@dataclass(frozen=True)
class Extent:
    """How much is looked at."""

    iteration: int
    prompts: int
    """Number of prompts, which are the same in every language."""
    samples: int
    """Responses to each."""
    langs: Sequence[str]
