"""The questions to a judge, and what its reply expresses: the better of two answers, or a grade of one.

A question is a template of messages, filled with an instruction and the answers. The judge replies m if the first
answer is better and M if the second is, with a grade from 1 to 9, or with a rating from 1 to 10.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xlr.errors import UserError
from xlr.foreign.texts import MIB, read
from xlr.records import Message

FIRST, SECOND = "m", "M"
UNDECIDED = math.nan
LOWEST, HIGHEST = 1, 9
"""Grades. Each is one token in every known vocabulary, unlike 10."""


@dataclass(frozen=True)
class Scale:
    """What a judge may reply."""

    values: Mapping[str, float]
    """Reply -> what it means, from 0 to 1."""
    said: Callable[[str], str | None]
    """The reply that a longer text states; None if there is none."""
    explained: int | None = None
    """An endpoint explains its reply in up to this many tokens, so that its text is read whatever `judge.preference`
    says. None leaves it to `judge.*`."""


def _last_letter(text: str) -> str | None:
    """The last m or M that stands alone."""
    found = [word for word in _WORD.findall(text) if word in (FIRST, SECOND)]
    return found[-1] if found else None


def _only_grade(text: str) -> str | None:
    """The grade, if the text has just one and no other number beside the scale's ends, as in "7/9" or "from 1 to 9"."""
    found = {*_NUMBER.findall(_ENDS_OF_SCALE.sub(" ", text))}
    return found.pop() if len(found) == 1 else None


def _rating(text: str) -> str | None:
    """The last number in double brackets; without one, the text itself if it is nothing but a number."""
    found = _BRACKETED.findall(text) or [text.strip()]
    return found[-1]


PREFERENCE = Scale({FIRST: 0.0, SECOND: 1.0}, _last_letter)
"""The probability that the second of two answers is better."""
GRADES = Scale({str(grade): (grade - LOWEST) / (HIGHEST - LOWEST) for grade in range(LOWEST, HIGHEST + 1)}, _only_grade)
HIGHEST_RATING = 10


def ratings(explained: int) -> Scale:
    """Ratings from 1 to 10, as in MT-Bench.

    Args:
        explained: the longest reply of an endpoint, in tokens.
    """
    values = {str(one): (one - LOWEST) / (HIGHEST_RATING - LOWEST) for one in range(LOWEST, HIGHEST_RATING + 1)}
    return Scale(values, _rating, explained)


_FIELDS = ("instruction", "output_1", "output_2", "answer", "language", "transcript", "reference")
_REQUIRED = ("instruction", "output_1", "output_2")
_GRADING_REQUIRED = ("instruction", "answer")
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)
_FIELD = re.compile(r"\{(" + "|".join(_FIELDS) + r")\}")
_WORD = re.compile(r"\w+")
_BRACKETED = re.compile(r"\[\[\s*(\d+)\s*\]\]")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)?")
_ENDS_OF_SCALE = re.compile(rf"/\s*{HIGHEST}\b|\bout of {HIGHEST}\b|\b{LOWEST}\s*(?:to|-|–)\s*{HIGHEST}\b")

DEFAULT: list[Message] = [
    {
        "role": "system",
        "content": "You judge the answers of assistants. You weigh how well each does what its instruction asks: "
        "whether it is right, useful, complete and clear. You do not prefer an answer for being long, nor for the "
        "place it stands in.",
    },
    {
        "role": "user",
        "content": """Two assistants were given the same instruction. Say whose answer is better.

The instruction is in {language}. Unless it asks for another language, its answer belongs in {language}: an answer in \
another language is worse than one in {language}, whatever else is in it.

<instruction>
{instruction}
</instruction>

<answer assistant="m">
{output_1}
</answer>

<answer assistant="M">
{output_2}
</answer>

Reply with the letter of the assistant whose answer is better, and nothing else: m or M.""",
    },
]


GRADING: list[Message] = [
    {
        "role": "system",
        "content": "You grade the answers of assistants. You weigh how well an answer does what its instruction asks: "
        "whether it is right, useful, complete and clear. You do not give a better grade for length.",
    },
    {
        "role": "user",
        "content": """An assistant was given an instruction. Grade its answer from 1 (useless) to 9 (perfect).

The instruction is in {language}. Unless it asks for another language, its answer belongs in {language}: an answer in \
another language gets at most 3.

<instruction>
{instruction}
</instruction>

<answer>
{answer}
</answer>

Reply with the grade, a digit from 1 to 9, and nothing else.""",
    },
]

_RATING = """You rate the last answer of an assistant in a conversation. You weigh whether it is helpful, right, \
relevant and deep enough, and whether it follows what was asked before. You do not give a better rating for length. \
The conversation is in {language}. Unless it asks for another language, an answer in another language gets at most 3.

<conversation>
{transcript}
</conversation>

{reference}<answer>
{answer}
</answer>

"""
_REFERENCE = """A right answer, to compare with:
<right_answer>
{reference}
</right_answer>

"""
_EXPLAINED = (
    "Explain in a few sentences how good the answer is. Then write your rating, a whole number from 1 (useless) to 10 "
    "(perfect), on a last line of exactly this form: [[5]]"
)
_NUMBER_ONLY = "Reply with your rating, a whole number from 1 (useless) to 10 (perfect), and nothing else."


def rating(transcript: str, answer: str, reference: str, language: str, explained: bool) -> list[Message]:
    """The question for a rating of an answer in a conversation.

    Args:
        transcript: the conversation before the answer.
        reference: a right answer; empty if none is known.
        explained: whether the judge may explain its rating before it.

    Source: the single-answer grading of MT-Bench, arXiv 2306.05685, with and without a reference.
    """
    given = {
        "transcript": transcript,
        "answer": answer,
        "reference": _REFERENCE.replace("{reference}", reference) if reference else "",
        "language": language,
    }
    asked = _FIELD.sub(lambda match: given[match[1]], _RATING) + (_EXPLAINED if explained else _NUMBER_ONLY)
    return [{"role": "user", "content": asked}]


def load(path: str | None) -> list[Message]:
    """The messages of a template file, or `DEFAULT` without one. A file without <|im_start|> marks is one user message.

    Raises:
        UserError: the file cannot be read, or a field is missing in it.
    """
    return DEFAULT if path is None else _load(path, "judge.template", _REQUIRED)


def load_grading(path: str | None) -> list[Message]:
    """Like `load`, of a question that asks for a grade; `GRADING` without a file."""
    return GRADING if path is None else _load(path, "score.grading_template", _GRADING_REQUIRED)


def _load(path: str, key: str, required: Sequence[str]) -> list[Message]:
    text = read(Path(path), MIB)
    fields = [f"{{{field}}}" for field in required]
    missing = [field for field in fields if field not in text]
    if missing:
        raise UserError(
            f"{key} {path}: has no {', '.join(missing)}; a template needs {', '.join(fields[:-1])} and {fields[-1]}"
        )
    turns = _TURN.findall(text) or [("user", text)]
    return [{"role": role, "content": content} for role, content in turns]


def fill(template: list[Message], instruction: str, first: str, second: str, language: str) -> list[Message]:
    """Fill a template. All fields are replaced in one pass, so an answer that contains "{output_1}" keeps it."""
    given = {"instruction": instruction, "output_1": first, "output_2": second, "language": language}
    return _filled(template, given)


def fill_grading(template: list[Message], instruction: str, answer: str, language: str) -> list[Message]:
    """Fill a template that asks for a grade, in one pass."""
    return _filled(template, {"instruction": instruction, "answer": answer, "language": language})


def _filled(template: list[Message], values: Mapping[str, str]) -> list[Message]:
    return [
        {"role": turn["role"], "content": _FIELD.sub(lambda match: values.get(match[1], match[0]), turn["content"])}
        for turn in template
    ]


def weighted(logps: Mapping[str, float], scale: Scale = PREFERENCE) -> float:
    """The mean of what the judge may reply, by the log-probabilities of the reply's first token.

    Only the replies of the scale count, with or without white space around them; a missing one has probability 0.

    Returns:
        A number from 0 to 1: with `PREFERENCE` the probability that the second answer is better. NaN if no reply of the
        scale is there.

    Source: AlpacaEval 2's weighted preference (arXiv 2404.04475); for grades G-Eval (arXiv 2303.16634), section 2.
    """
    own = [(token.strip(), logp) for token, logp in logps.items() if token.strip() in scale.values]
    largest = max((logp for _, logp in own), default=-math.inf)
    if largest == -math.inf:
        return UNDECIDED
    chances = [(scale.values[token], math.exp(logp - largest)) for token, logp in own]
    return sum(value * chance for value, chance in chances) / sum(chance for _, chance in chances)


def choice(reply: str, scale: Scale = PREFERENCE) -> float:
    """What the text of a reply means, from 0 to 1; NaN if it states no reply of the scale."""
    said = scale.said(reply)
    return scale.values.get(said, UNDECIDED) if said is not None else UNDECIDED
