"""The implicit reward, the instruction under which a response is scored, and the mean of several rewards."""

import statistics
from collections.abc import Sequence

# Verbatim from arXiv 2503.04647: put before the English version of an instruction, it asks for another language.
CROSSLINGUAL_PREFIX = (
    "Please answer the following instruction using only {language}, "
    "unless explicitly instructed to respond in a different language."
)
TRANSLATE_INSTRUCTION = (
    "Translate the following text from {source} to {target}. Reply with the translation only.\n\n{text}"
)

MARKED_INSTRUCTION = (
    "Translate the sentence between <sentence> and </sentence> from {source} to {target}. Write the translation "
    "between <translated> and </translated>.\n\n<sentence>{text}</sentence>"
)
"""Like `TRANSLATE_INSTRUCTION`, with marks around the text and the translation, as in arXiv 2503.04647's code."""
PRIMER, _END = "<translated>", "</translated>"
"""What the answer to `MARKED_INSTRUCTION` is made to begin with."""
FAILED_TRANSLATION = "The translation failed."
"""Stands for a translation whose end mark is missing."""


def marked_translation(answer: str) -> str:
    """The translation in an answer to `MARKED_INSTRUCTION`, from after the primer to the end mark."""
    text, mark, _ = answer.partition(_END)
    return text.strip() if mark and text.strip() else FAILED_TRANSLATION


def implicit_reward(logp_policy: float, logp_reference: float) -> float:
    """r(x, y) = log pi(y|x) - log pi_ref(y|x), in nats, without the factor beta, which does not change the order.

    Source: arXiv 2503.04647 eq. 3.
    """
    return logp_policy - logp_reference


def spread(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and population standard deviation of rewards, at least one."""
    mean = statistics.fmean(rewards)
    return mean, statistics.fmean((reward - mean) ** 2 for reward in rewards) ** 0.5


def standardised_mean(
    rewards: Sequence[float], spreads: Sequence[tuple[float, float]], weights: Sequence[float]
) -> float:
    """The weighted mean of a response's rewards of several kinds, in standard deviations.

    Args:
        rewards: one of each kind.
        spreads: mean and standard deviation of each kind over a language. A kind that does not vary counts as 0.
        weights: of each kind, positive.
    """
    kinds = zip(rewards, spreads, weights, strict=True)
    total = sum(weight * (reward - mean) / deviation for reward, (mean, deviation), weight in kinds if deviation > 0)
    return total / sum(weights)


def crosslingual_instruction(english: str, lang: str, language: str) -> str:
    """The cross-lingual instruction G(x): an English instruction that asks for an answer in `lang`.

    Args:
        english: the English version of the instruction.
        lang: tag of the response's language; English gets no prefix.
        language: the English name of that language, for example `Spanish`.

    Source: arXiv 2503.04647 (the cross-lingual instruction).
    """
    if lang == "en":
        return english
    return CROSSLINGUAL_PREFIX.format(language=language) + "\n\n" + english
