"""The question to a judge about two answers, and the preference that its reply expresses.

A question is a template of messages, filled with an instruction and two answers. The judge replies m if the first
answer is better, M if the second is.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path

from xlr.errors import UserError
from xlr.foreign.texts import MIB, read
from xlr.records import Message

FIRST, SECOND = "m", "M"
UNDECIDED = math.nan

_FIELDS = ("instruction", "output_1", "output_2", "language")
_REQUIRED = _FIELDS[:3]
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)
_FIELD = re.compile(r"\{(" + "|".join(_FIELDS) + r")\}")
_VERDICT = re.compile(r"(?<!\w)[mM](?!\w)")

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


def load(path: str | None) -> list[Message]:
    """The messages of a template file, or `DEFAULT` without one. A file without <|im_start|> marks is one user message.

    Raises:
        UserError: the file cannot be read, or a field is missing in it.
    """
    if path is None:
        return DEFAULT
    text = read(Path(path), MIB)
    missing = [f"{{{field}}}" for field in _REQUIRED if f"{{{field}}}" not in text]
    if missing:
        raise UserError(
            f"judge.template {path}: has no {', '.join(missing)}; a template needs {{instruction}}, {{output_1}} and "
            "{output_2}"
        )
    turns = _TURN.findall(text) or [("user", text)]
    return [{"role": role, "content": content} for role, content in turns]


def fill(template: list[Message], instruction: str, first: str, second: str, language: str) -> list[Message]:
    """Fill a template. All fields are replaced in one pass, so an answer that contains "{output_1}" keeps it."""
    values = dict(zip(_FIELDS, (instruction, first, second, language), strict=True))
    return [
        {"role": turn["role"], "content": _FIELD.sub(lambda match: values[match[1]], turn["content"])}
        for turn in template
    ]


def weighted(logps: Mapping[str, float]) -> float:
    """The probability that the second answer is better, from the log-probabilities of the reply's first token.

    Only the tokens m and M count, with or without white space around them; a missing one has probability 0.

    Returns:
        a probability, or NaN if neither token is there.

    Source: AlpacaEval 2's weighted preference (arXiv 2404.04475).
    """
    own = [(token.strip(), logp) for token, logp in logps.items() if token.strip() in (FIRST, SECOND)]
    largest = max((logp for _, logp in own), default=-math.inf)
    if largest == -math.inf:
        return UNDECIDED
    first, second = (
        sum(math.exp(logp - largest) for token, logp in own if token == verdict) for verdict in (FIRST, SECOND)
    )
    return second / (first + second)


def choice(reply: str) -> float:
    """The preference that a reply's text states: 1 if its last separate m or M is M, 0 if it is m, NaN without any."""
    found = _VERDICT.findall(reply)
    return float(found[-1] == SECOND) if found else UNDECIDED
