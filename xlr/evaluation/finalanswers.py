"""Whether an answer is right, without a judge: its final number, letter or line is the expected one."""

import re
import unicodedata
from decimal import Decimal, InvalidOperation

# A plain space separates groups of three digits only, the other separators any.
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?: \d{3})+(?:[.,]\d+)?(?!\d)|\d(?:[\d.,'’٬٫\u00a0\u202f]*\d)?)")
_LETTER = re.compile(r"(?<!\w)([A-Z])(?!\w)")
_SEPARATORS = re.compile(r"[.,'’٬٫\u00a0\u202f]")


def is_right(expected: str, answer: str) -> bool:
    """Whether an answer ends with what is expected.

    - A number: the last number in the answer has this value. Digits of any script count. A separator may stand for
      thousands or for decimals, as languages differ: 1.234 is 1234 or 1.234.
    - A capital letter, such as the name of a choice: it is the last letter that stands alone.
    - Another text: the last line that is not empty is this text, whatever its case, punctuation and white space.
    """
    expected = expected.strip()
    if numbers := _readings(expected):
        found = _NUMBER.findall(answer)
        return bool(found) and not numbers.isdisjoint(_readings(found[-1]))
    if _LETTER.fullmatch(expected):
        letters = _LETTER.findall(answer)
        return bool(letters) and letters[-1] == expected
    lines = [line for line in answer.splitlines() if line.strip()]
    return bool(lines) and _plain(lines[-1]) == _plain(expected)


def _readings(text: str) -> set[Decimal]:
    """The values that a text may stand for as a number; none if it is not a number."""
    if not _NUMBER.fullmatch(text):
        return set()
    digits = "".join(
        str(unicodedata.digit(one)) if one.isdigit() else one for one in text.replace("−", "-").replace(" ", "")
    )
    whole, *last = _SEPARATORS.sub(" ", digits).rsplit(" ", 1)
    found = {_SEPARATORS.sub("", digits)}
    if last:
        found.add(f"{whole.replace(' ', '')}.{last[0]}")
    return {value for one in found if (value := _decimal(one)) is not None}


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _plain(text: str) -> str:
    """Letters and digits of a text in lower case."""
    return "".join(one for one in unicodedata.normalize("NFKC", text).casefold() if one.isalnum())
