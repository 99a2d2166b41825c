"""Which language a text is in: lingua says it for the languages that it knows, and CLD2 for others, if it is there.

CLD2 comes with `pip install "xlr[languages]"`. Variants count as their language: `pt-BR` as `pt`, `zh-Hant` as `zh`.
"""

import importlib.util
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

from xlr import languages
from xlr.languages import NAMES
from xlr.versions import DETECTORS

LINGUA, CLD2 = DETECTORS
EXTRA = 'pip install "xlr[languages]"'

# Detection always considers these languages, not only those of a run. A detector of all 75 would take 0.9 GB.
_COMMON = ("en", "es", "ru", "de", "fr", "zh", "ja", "ko", "ar", "hi", "pt", "it", "nl", "pl", "tr", "vi", "id")
_OF_CLD2 = frozenset(
    [
        *("aa", "ab", "ak", "am", "as", "ay", "ba", "bho", "bi", "bo", "br", "ceb", "chr", "co", "crs", "dv", "dz"),
        *("ee", "fj", "fo", "fy", "gaa", "gd", "gl", "gn", "gv", "ha", "haw", "hmn", "ht", "ia", "ie", "ig", "ik"),
        *("iu", "jv", "kha", "kl", "km", "kn", "kri", "ks", "ku", "ky", "lb", "lif", "ln", "lo", "loz", "lua", "luo"),
        *("mfe", "mg", "ml", "mt", "my", "na", "ne", "new", "no", "nr", "nso", "ny", "oc", "om", "or", "os", "pam"),
        *("ps", "qu", "raj", "rm", "rn", "rw", "sa", "sco", "sd", "sg", "si", "sm", "ss", "su", "syr", "tg", "ti"),
        *("tk", "tlh", "to", "tt", "tum", "ug", "uz", "ve", "vo", "war", "wo", "yi", "za"),
    ]
)
"""The languages that CLD2 knows and lingua does not."""
_SEEN = 100  # characters at each end of a longer text that are looked at; more change little: benchmarks/README.md


def detector(lang: str) -> str | None:
    """The package that can tell whether a text is in the language; None if there is none, or it is not installed."""
    if languages.primary(lang) in NAMES:
        return LINGUA
    return CLD2 if is_in_extra(lang) and importlib.util.find_spec(CLD2) else None


def undetected(langs: Iterable[str]) -> list[str]:
    """The languages of which nothing here can tell whether a text is in them."""
    return [lang for lang in langs if detector(lang) is None]


def is_in_extra(lang: str) -> bool:
    """Whether the language is one of those for which CLD2 has to be installed."""
    return languages.primary(lang) in _OF_CLD2


def why_not(lang: str) -> str:
    """Why a language is not detected, and what would help, if anything."""
    return f"its detector comes with `{EXTRA}`" if is_in_extra(lang) else "no detector knows it"


def libraries(langs: Collection[str]) -> tuple[str, ...]:
    """The packages whose versions decide what is detected in texts of these languages, installed or not."""
    return (LINGUA, CLD2) if any(map(is_in_extra, langs)) else (LINGUA,)


def is_in(detected: str, lang: str) -> bool:
    """Whether the detected language is that of the tag."""
    return detected == languages.primary(lang)


def detect(texts: Iterable[tuple[str, str]], expected: Iterable[str]) -> list[str]:
    """The language of each text, or an empty string where it cannot be detected.

    Args:
        texts: each with the language that it should be in, whose detector is asked.
        expected: the languages that lingua considers, in addition to the most common ones.
    """
    considered = {languages.primary(lang) for lang in expected} & NAMES.keys()
    ask = {LINGUA: _by_lingua, CLD2: _by_cld2}
    return [
        "" if (found := detector(lang)) is None else ask[found](excerpt(text), tuple(sorted({*considered, *_COMMON})))
        for lang, text in texts
    ]


@cache
def _lingua(codes: tuple[str, ...]) -> Any:
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_iso_codes_639_1(
        *[getattr(IsoCode639_1, code.upper()) for code in codes]
    ).build()


def _by_lingua(text: str, considered: tuple[str, ...]) -> str:
    found = _lingua(considered).detect_language_of(text)
    return found.iso_code_639_1.name.lower() if found else ""


def _by_cld2(text: str, _considered: tuple[str, ...]) -> str:
    import pycld2

    visible = "".join(character if character.isprintable() else " " for character in text)
    try:
        reliable, _, ((_, code, *_), *_) = pycld2.detect(visible.encode("utf-8", "replace"))
    except pycld2.error:  # it refuses some rare characters
        return ""
    return languages.primary(code) if reliable and code != "un" else ""


def excerpt(text: str) -> str:
    """What detection looks at of a text: both ends of a long one tell its language, and that it has changed.

    The excerpt of an excerpt is the same.
    """
    return text if len(text) <= 2 * _SEEN + 1 else f"{text[:_SEEN]}\n{text[-_SEEN:]}"
