"""Whether an answer is right, without a judge: its final number, letter or line is the expected one."""

import re
import unicodedata
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

# A plain space separates groups of three digits only, the other separators any.
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?: \d{3})+(?:[.,]\d+)?(?!\d)|\d(?:[\d.,'’٬٫\u00a0\u202f]*\d)?)")
_LETTER = re.compile(r"(?<!\w)([A-Z])(?!\w)")
_CHOICES = "ABCDEFGHJKLMNOPQRSTUVWXYZ"  # without I, which is a word
_GROUP = 3
_SEPARATORS = re.compile(r"[.,'’٬٫\u00a0\u202f]")


def is_right(expected: str, answer: str) -> bool:
    """Whether an answer ends with what is expected.

    - A number, written as in English: the last number in the answer has this value. Digits of any script count. As
      languages differ, 1.234 in an answer is 1234 or 1.234, but 12.34 is 12.34 alone.
    - A capital letter, such as the name of a choice: it is the last letter that stands alone, but for the English I.
    - Another text: the last line that is not empty is this text, whatever its case, punctuation and white space.
    """
    expected = expected.strip()
    if _NUMBER.fullmatch(expected):
        found = _NUMBER.findall(answer)
        return bool(found) and _in_english(expected) in _readings(found[-1])
    if _LETTER.fullmatch(expected):
        letters = [letter for letter in _LETTER.findall(answer) if letter in (expected, *_CHOICES)]
        return bool(letters) and letters[-1] == expected
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and _plain(lines[-1]) == _plain(expected)


def _in_english(text: str) -> Decimal | None:
    """The value of a number with a decimal point; None if it has separators that English has not."""
    try:
        return Decimal(_sign(text) + _digits(text).replace(",", ""))
    except InvalidOperation:
        return None


def _readings(text: str) -> set[Decimal]:
    """The values that a number in an answer may have: its last separator stands for decimals or for thousands."""
    *before, last = _SEPARATORS.split(_digits(text))
    found = set()
    if _grouped([*before, last]):
        found.add(Decimal(_sign(text) + "".join([*before, last])))
    if before and _grouped(before):
        found.add(Decimal(f"{_sign(text)}{''.join(before)}.{last}"))
    return found


def _grouped(groups: Sequence[str]) -> bool:
    """Whether these are the digits of a whole number: one group, or groups of three after the first."""
    return len(groups) == 1 or (len(groups[0]) <= _GROUP and all(len(group) == _GROUP for group in groups[1:]))


def _sign(text: str) -> str:
    return "-" if text[0] in "-−" else ""


def _digits(text: str) -> str:
    """A number with the digits 0 to 9, without its sign and plain spaces."""
    whole = text.lstrip("-−").replace(" ", "")
    return "".join(str(unicodedata.digit(one)) if one.isdigit() else one for one in whole)


def _plain(text: str) -> str:
    """Letters, marks and digits of a text in lower case; the text itself if it has none."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(one for one in folded if unicodedata.category(one)[0] in "LMN") or folded.strip()
