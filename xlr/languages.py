"""Languages: ISO 639-1 codes, English names, and detection of a text's language."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from xlr.errors import UserError

ENGLISH = "en"

# Detection always considers these languages, not only those of a run. A detector of all 75 would take 0.9 GB.
_COMMON = ("en", "es", "ru", "de", "fr", "zh", "ja", "ko", "ar", "hi", "pt", "it", "nl", "pl", "tr", "vi", "id")


_SEEN = 500  # characters at each end of a longer text that detection looks at


@cache
def _known() -> Mapping[str, Any]:
    """Every language that can be detected, by its code."""
    from lingua import Language

    return {language.iso_code_639_1.name.lower(): language for language in Language.all()}


def is_known(code: str) -> bool:
    """Whether a text is the ISO 639-1 code of a language that can be detected."""
    return code in _known()


def _language(code: str) -> Any:
    if not is_known(code):
        raise UserError(f"{code!r} is not a known ISO 639-1 language code; known codes: {', '.join(sorted(_known()))}")
    return _known()[code]


def name(code: str) -> str:
    """The English name of a language, for example `Spanish` for `es`, as in the cross-lingual instruction.

    Raises:
        UserError: the code is unknown.
    """
    return _language(code).name.title()


@cache
def _detector(codes: tuple[str, ...]) -> Any:
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*[_language(code) for code in codes]).build()


def detect(texts: Iterable[str], expected: Iterable[str]) -> list[str]:
    """The ISO 639-1 code of each text's language, or an empty string if it cannot be detected.

    Of a long text, detection looks at the beginning and the end: they tell its language, and that it has changed.

    Args:
        expected: codes of the languages to consider, in addition to the most common ones.

    Raises:
        UserError: a code is unknown.
    """
    detector = _detector(tuple(sorted({*expected, *_COMMON})))
    found = [detector.detect_language_of(_ends(text)) for text in texts]
    return [language.iso_code_639_1.name.lower() if language else "" for language in found]


def _ends(text: str) -> str:
    return text if len(text) <= 2 * _SEEN else f"{text[:_SEEN]}\n{text[-_SEEN:]}"
