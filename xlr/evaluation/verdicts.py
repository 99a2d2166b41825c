"""What a judge's answer says of two answers, as numbers: m stands for the first one shown, M for the second."""

import math
import re
from collections.abc import Mapping

FIRST, SECOND = "m", "M"
UNDECIDED = math.nan

_VERDICT = re.compile(r"(?<!\w)[mM](?!\w)")


def weighted(logps: Mapping[str, float]) -> float:
    """The probability that the second answer is better, from the log-probabilities of the verdict's tokens.

    Tokens other than the two verdicts, white space apart, do not count; a verdict that is not there has none. NaN
    where neither is.

    Source: AlpacaEval 2's weighted preference (arXiv 2404.04475).
    """
    own = [(token.strip(), logp) for token, logp in logps.items() if token.strip() in (FIRST, SECOND)]
    most = max((logp for _, logp in own), default=-math.inf)
    if most == -math.inf:
        return UNDECIDED
    first, second = (
        sum(math.exp(logp - most) for token, logp in own if token == verdict) for verdict in (FIRST, SECOND)
    )
    return second / (first + second)


def chosen(text: str) -> float:
    """1 where a text ends in the verdict that the second answer is better, 0 for the first, NaN for neither."""
    found = _VERDICT.findall(text)
    if not found:
        return UNDECIDED
    return float(found[-1] == SECOND)
