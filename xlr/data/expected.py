"""The right answers of questions that can be checked."""

import hashlib
import json
from dataclasses import dataclass

from xlr.data.fields import is_text
from xlr.data.prompts import identified
from xlr.errors import UserError
from xlr.settings.dataconfig import CheckedConfig

_NAMES = ("answer", "response")


def load_expected(section: CheckedConfig, lang: str) -> dict[str, str]:
    """The right answer to each question of a language, by id.

    Raises:
        UserError: a source cannot be read, or a question has no answer.
    """
    found = {}
    for key, position, row in identified(section, lang):
        name = section.columns.answer or next((name for name in _NAMES if name in row), _NAMES[0])
        value = row.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value)
        if not is_text(value):
            raise UserError(
                f"{position}: the question {key!r} has no answer in {name!r}; add it, or name the column in "
                "evaluate.checked.columns.answer"
            )
        found[key] = str(value)
    return found


@dataclass(frozen=True)
class ExpectedAnswers:
    """The right answers of a language, as an input of an artefact."""

    section: CheckedConfig
    lang: str

    def digest(self) -> str:
        """SHA-256 of ids and answers."""
        return hashlib.sha256(json.dumps(load_expected(self.section, self.lang)).encode()).hexdigest()

    def __str__(self) -> str:
        return f"{self.section.path} {self.lang}"
