"""ISO 639-1 codes, their English names, and what language a text is in."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from xlr.errors import UserError

# Told apart from the run's own languages; a short list keeps the detector small (all 75 take 0.9 GB).
_COMMON = ("en", "es", "ru", "de", "fr", "zh", "ja", "ko", "ar", "hi", "pt", "it", "nl", "pl", "tr", "vi", "id")


def _language(code: str) -> Any:
    from lingua import Language

    for language in Language.all():
        if language.iso_code_639_1.name.lower() == code:
            return language
    known = ", ".join(sorted(language.iso_code_639_1.name.lower() for language in Language.all()))
    raise UserError(f"{code!r} is not a known ISO 639-1 language code; known are {known}")


def name(code: str) -> str:
    """The English name of a language, as the cross-lingual instruction spells it: `es` -> `Spanish`.

    Raises:
        UserError: the code is not known.
    """
    return _language(code).name.title()


@cache
def _detector(codes: tuple[str, ...]) -> Any:
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*[_language(code) for code in codes]).build()


def detect(texts: Iterable[str], expected: Iterable[str]) -> list[str]:
    """The ISO 639-1 code of each text's language, or an empty string where nothing can be told.

    Args:
        expected: the languages they should be in, told apart from each other and from the most common ones.
    """
    detector = _detector(tuple(sorted({*expected, *_COMMON})))
    found = [detector.detect_language_of(text) for text in texts]
    return [language.iso_code_639_1.name.lower() if language else "" for language in found]
