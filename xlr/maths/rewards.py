"""The implicit reward, and the prompt each reward mode scores a response under."""

# Verbatim from the paper: the prefix that turns the English twin into a cross-lingual instruction.
CROSSLINGUAL_PREFIX = (
    "Please answer the following instruction using only {language}, "
    "unless explicitly instructed to respond in a different language."
)
TRANSLATE_INSTRUCTION = (
    "Translate the following text from {language} to English. Reply with the translation only.\n\n{text}"
)


def implicit_reward(logp_policy: float, logp_reference: float) -> float:
    """r(x, y) = log pi(y|x) - log pi_ref(y|x), in nats; beta is left out, it does not change an order.

    Source: arXiv 2503.04647 eq. 3.
    """
    return logp_policy - logp_reference


def crosslingual_instruction(english: str, lang: str, language: str) -> str:
    """The English instruction G(x) that a response in `lang` is scored under.

    Args:
        english: the English twin of the instruction.
        lang: ISO 639-1 code of the response's language; English gets no prefix.
        language: the language's English name, e.g. `Spanish`.
    """
    if lang == "en":
        return english
    return CROSSLINGUAL_PREFIX.format(language=language) + "\n\n" + english
