"""How many operations a model takes, and how long a decoding step takes.

A multiplication and an addition are two operations. Sums over keys count what a causal mask lets through.
"""

import math
from statistics import NormalDist

from xlr.maths.memory import Shape, cache_of_token

SPREAD = 0.6
"""Standard deviation of the logarithm of a response's length, as in `benchmarks/sampling_plan.py`."""


def forward(shape: Shape, tokens: float, keys: float) -> float:
    """Operations of a forward pass.

    Args:
        tokens: the tokens, each of which passes through all layers and the output layer.
        keys: over all tokens, the number of keys that each attends to.
    """
    return 2 * shape.active * tokens + 4 * shape.layers * shape.queries * keys


def keys_of_answers(prompt: float, answer: float, answers: int) -> float:
    """Over the tokens of a prompt and its answers, the keys that each attends to; the prompt is computed once."""
    return prompt**2 / 2 + answers * (answer * prompt + answer**2 / 2)


def longest(mean: float, rows: int, most: int) -> float:
    """The expected length of the longest of some responses, in tokens: of lognormal ones, cut off at `most`.

    The maximum of n standard normal variables is expected near their quantile (n - 0.375) / (n + 0.25) (Blom, 1958).
    """
    highest = NormalDist().inv_cdf((rows - 0.375) / (rows + 0.25))
    return min(mean * math.exp(SPREAD * highest - SPREAD**2 / 2), most)


def decoding_step(
    shape: Shape, rows: float, tokens: float, width: int, rate: float, bandwidth: float, overhead: float
) -> float:
    """Seconds of a step that gives each of some responses one token: weights and cache are read, and multiplied with.

    Args:
        tokens: mean tokens of a response with its prompt so far.
        width: bytes of a weight.
        rate: operations a second in products.
        bandwidth: bytes a second from memory.
        overhead: seconds a step, beside.
    """
    read = width * shape.active + rows * tokens * cache_of_token(shape, width)
    return overhead + read / bandwidth + forward(shape, rows, rows * tokens) / rate
