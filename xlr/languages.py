"""Languages: BCP 47 tags and their English names."""

import re
from functools import cache

from xlr.errors import UserError
from xlr.foreign.texts import brief, cut, reason

ENGLISH = "en"

NAMES = {
    **{"af": "Afrikaans", "sq": "Albanian", "ar": "Arabic", "hy": "Armenian", "az": "Azerbaijani", "eu": "Basque"},
    **{"be": "Belarusian", "bn": "Bengali", "nb": "Bokmal", "bs": "Bosnian", "bg": "Bulgarian", "ca": "Catalan"},
    **{"zh": "Chinese", "hr": "Croatian", "cs": "Czech", "da": "Danish", "nl": "Dutch", "en": "English"},
    **{"eo": "Esperanto", "et": "Estonian", "fi": "Finnish", "fr": "French", "lg": "Ganda", "ka": "Georgian"},
    **{"de": "German", "el": "Greek", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "hu": "Hungarian"},
    **{"is": "Icelandic", "id": "Indonesian", "ga": "Irish", "it": "Italian", "ja": "Japanese", "kk": "Kazakh"},
    **{"ko": "Korean", "la": "Latin", "lv": "Latvian", "lt": "Lithuanian", "mk": "Macedonian", "ms": "Malay"},
    **{"mi": "Maori", "mr": "Marathi", "mn": "Mongolian", "nn": "Nynorsk", "fa": "Persian", "pl": "Polish"},
    **{"pt": "Portuguese", "pa": "Punjabi", "ro": "Romanian", "ru": "Russian", "sr": "Serbian", "sn": "Shona"},
    **{"sk": "Slovak", "sl": "Slovene", "so": "Somali", "st": "Sotho", "es": "Spanish", "sw": "Swahili"},
    **{"sv": "Swedish", "tl": "Tagalog", "ta": "Tamil", "te": "Telugu", "th": "Thai", "ts": "Tsonga"},
    **{"tn": "Tswana", "tr": "Turkish", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "cy": "Welsh"},
    **{"xh": "Xhosa", "yo": "Yoruba", "zu": "Zulu"},
}
"""The languages that lingua detects. Their names stand in the instructions of runs, so no release may change one."""

_FLORES = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
_LONGEST = 35  # characters of a tag; RFC 5646, section 4.4.1, asks software to allow as many
_SPLITS = ("all", "dev", "raw", "val")  # these tags of small languages are common names of other things


@cache
def canonical(tag: str) -> str:
    """The tag as the registry of languages writes it, for example `pt-BR` for `pt-br` or `pt_BR`.

    Raises:
        UserError: it is malformed, or a part of it is not registered; names the nearest tag, if there is one.
    """
    if tag in NAMES:
        return tag
    import langcodes

    try:
        found = langcodes.standardize_tag(tag)
        if langcodes.tag_is_valid(tag) and len(found) <= _LONGEST:
            return found
        why = f"is longer than {_LONGEST} characters" if len(found) > _LONGEST else "a part of it is not registered"
    except ValueError as error:
        why = cut(reason(error))
    raise UserError(f"{brief(tag)} is no language tag of BCP 47 ({why}); {_nearest(tag)}")


def _nearest(tag: str) -> str:
    """What to write instead: the tag of the language that has such a name, or examples."""
    import langcodes

    try:
        close = langcodes.find(tag[:_LONGEST])
    except (LookupError, UnicodeError):  # the latter for halves of surrogate pairs, and for control characters
        return "write one such as en, ha, pt-BR or zh-Hant"
    return f"did you mean {close.to_tag()} ({close.display_name()})?"


def is_language(name: str) -> bool:
    """Whether the name of a file, or of a part of a dataset, is a language's tag."""
    try:
        return canonical(name) == name and name not in _SPLITS
    except UserError:
        return False


@cache
def of_part(name: str) -> str | None:
    """The tag of the language that the name of a part of a dataset means; None if it means none.

    A name is a tag, or a code of FLORES-200: `deu_Latn` means `de`, `arb_Arab` `ar`, `zho_Hant` `zh-Hant`.
    """
    if is_language(name):
        return name
    if not _FLORES.fullmatch(name):
        return None
    import langcodes

    tag = langcodes.standardize_tag(name, macro=True)
    language, _, script = tag.partition("-")
    usual = langcodes.Language.get(language).maximize().script
    tag = language if script == usual or (script, usual) == ("Hang", "Kore") else tag
    return tag if is_language(tag) else None


@cache
def name(tag: str) -> str:
    """The English name of a language, for example `Hausa` for `ha`, as in the cross-lingual instruction.

    Raises:
        UserError: the tag is wrong, or has no name.
    """
    tag = canonical(tag)
    if tag in NAMES:
        return NAMES[tag]
    import langcodes

    if (found := langcodes.Language.get(tag)).language_name().startswith("Unknown language"):
        raise UserError(f"{brief(tag)} has no English name; give it one: {{tag: {tag}, name: ...}}")
    return found.display_name()


@cache
def primary(tag: str) -> str:
    """The language of a tag without region and script: `pt` for `pt-BR`, `ar` for Standard Arabic, `arb`."""
    if tag in NAMES:
        return tag
    import langcodes

    found = langcodes.standardize_tag(tag, macro=True).partition("-")[0]
    return "tl" if found == "fil" else found  # one language, of which the registry prefers the newer tag
