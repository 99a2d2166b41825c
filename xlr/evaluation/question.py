"""What a judge is asked: a template of messages, filled with an instruction and two answers."""

import re
from pathlib import Path

from xlr.errors import UserError
from xlr.records import Message

_FIELDS = ("instruction", "output_1", "output_2", "language")
_NEEDED = _FIELDS[:3]
_TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)\n?<\|im_end\|>", re.DOTALL)
_FIELD = re.compile(r"\{(" + "|".join(_FIELDS) + r")\}")

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
    """A template file's messages, or xlr's own. A text without turn marks is one user message.

    Raises:
        UserError: the file cannot be read, or lacks a field.
    """
    if path is None:
        return DEFAULT
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judge.template {path}: cannot be read ({error})") from error
    lacking = [f"{{{field}}}" for field in _NEEDED if f"{{{field}}}" not in text]
    if lacking:
        raise UserError(f"judge.template {path}: has no {', '.join(lacking)}; the judge must see all three")
    turns = _TURN.findall(text) or [("user", text)]
    return [{"role": role, "content": content} for role, content in turns]


def fill(template: list[Message], instruction: str, first: str, second: str, language: str) -> list[Message]:
    """The messages of one question. All fields at once: an answer that spells a field stays as it is."""
    values = dict(zip(_FIELDS, (instruction, first, second, language), strict=True))
    return [
        {"role": turn["role"], "content": _FIELD.sub(lambda found: values[found[1]], turn["content"])}
        for turn in template
    ]
