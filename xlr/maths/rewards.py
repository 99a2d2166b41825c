"""The implicit reward, and the instruction under which a response is scored."""

# Verbatim from arXiv 2503.04647: put before the English version of an instruction, it asks for another language.
CROSSLINGUAL_PREFIX = (
    "Please answer the following instruction using only {language}, "
    "unless explicitly instructed to respond in a different language."
)
TRANSLATE_INSTRUCTION = (
    "Translate the following text from {language} to English. Reply with the translation only.\n\n{text}"
)


def implicit_reward(logp_policy: float, logp_reference: float) -> float:
    """r(x, y) = log pi(y|x) - log pi_ref(y|x), in nats, without the factor beta, which does not change the order.

    Source: arXiv 2503.04647 eq. 3.
    """
    return logp_policy - logp_reference


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
