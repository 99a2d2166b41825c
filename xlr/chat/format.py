"""How a run writes conversations: its chat template, the template's arguments and date, and thinking."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from xlr.foreign.texts import read
from xlr.settings.modelconfig import ModelConfig

_MOST_BYTES = 1 << 20
_DAY = date.fromisoformat(ModelConfig.model_fields["chat_date"].default)
_NOW = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")


@dataclass(frozen=True)
class ChatFormat:
    """What decides how conversations are written; by default a tokenizer's own chat template."""

    template: str | None = None
    """A template to use instead of the tokenizer's."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the template."""
    day: date = _DAY
    """The date that templates write as today's: with the real one, prompts would change from day to day."""
    thinking: bool = False
    """Whether the model thinks before it answers."""

    @property
    def all_arguments(self) -> dict[str, Any]:
        """Arguments of the template, with the date as Llama's templates take it."""
        return {"date_string": self.day.strftime("%d %b %Y"), **self.arguments}

    def dated(self, template: str) -> str:
        """A template that writes this format's date as today's."""
        return _NOW.sub(lambda found: repr(self.day.strftime(found[2])), template)


def chat_format(section: ModelConfig) -> ChatFormat:
    """The format that the settings of a run ask for.

    Raises:
        UserError: the file of the chat template cannot be read.
    """
    return ChatFormat(
        _template(section),
        section.chat_template_kwargs,
        date.fromisoformat(section.chat_date),
        section.thinking != "skipped",
    )


def chat_settings(section: ModelConfig) -> dict[str, Any]:
    """The settings of conversations that decide results: those that are not at their default, the template by content.

    Raises:
        UserError: the file of the chat template cannot be read.
    """
    names = ("chat_template", "chat_template_kwargs", "system_prompt", "chat_date", "thinking")
    found = {name: getattr(section, name) for name in names}
    if (template := _template(section)) is not None:
        found["chat_template"] = hashlib.sha256(template.encode()).hexdigest()
    defaults = {name: ModelConfig.model_fields[name].get_default(call_default_factory=True) for name in names}
    return {f"model.{name}": value for name, value in found.items() if value != defaults[name]}


def _template(section: ModelConfig) -> str | None:
    return None if section.chat_template is None else read(Path(section.chat_template), _MOST_BYTES)
