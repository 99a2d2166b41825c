"""What settings are declared with: the base of every section, and marks that other code reads from a field.

A mark is written in a field's `Annotated[...]`, so a new setting is complete where it is declared.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from xlr.errors import UserError


class Section(BaseModel):
    """A section of the configuration: frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


# Marks a setting that changes how fast a stage runs or what it shows, never what it computes.
OPERATIONAL: Any = Field(json_schema_extra={"operational": True})


class Location(Enum):
    """Marks a setting that names a file or folder, so that loading makes its path absolute."""

    PATH = "path"
    HUB = "path, or name on the Hugging Face hub"
    DS_CONFIG = "path of a JSON file, or name of a shipped one"
    JUDGE = "the endpoint's model name; with backend transformers a path, or name on the Hugging Face hub"
    BASELINE = "iteration, name in evaluate.models, or path"


@dataclass(frozen=True)
class Ignored:
    """Marks a setting that has no effect unless another setting of its section has a certain value.

    Giving an ignored setting is an error. A resolved configuration spells every default out, so a setting counts as
    given if its value is not the default.
    """

    why: str
    """Completes "has no effect, because"."""
    unless: tuple[str, Any] | None = None
    """Key and value with which the setting has its effect; None: it never has one."""


Mark = TypeVar("Mark", Location, Ignored)


def marks(field: FieldInfo, kind: type[Mark]) -> list[Mark]:
    """The marks of one kind on a field."""
    return [mark for mark in field.metadata if isinstance(mark, kind)]


def is_operational(field: FieldInfo) -> bool:
    """True if the field is marked OPERATIONAL."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("operational"))


def section_type(annotation: Any) -> type[Section] | None:
    """The section class in `Section`, `Section | None` or `dict[str, Section]`; None for any other type."""
    options = (*get_args(annotation), annotation)
    return next((option for option in options if isinstance(option, type(Section))), None)


def section_types(section: type[Section], prefix: str = "") -> Iterator[tuple[str, type[Section]]]:
    """A section class and those inside it, each with the prefix of its keys; NAME is a name that the user chooses."""
    yield prefix, section
    for key, field in section.model_fields.items():
        below = section_type(field.annotation)
        if below is not None:
            named = ".NAME" if get_origin(field.annotation) is dict else ""
            yield from section_types(below, f"{prefix}{key}{named}.")


class Setting(NamedTuple):
    """One setting of a configuration."""

    section: Section
    """The section that holds it."""
    key: str
    """Its key in the section."""
    dotted: str
    """Its key in the configuration."""
    operational: bool
    """True if the setting, or a section that contains it, is marked OPERATIONAL."""

    @property
    def field(self) -> FieldInfo:
        """The declaration."""
        return type(self.section).model_fields[self.key]

    @property
    def value(self) -> Any:
        """The value."""
        return getattr(self.section, self.key)

    @property
    def default(self) -> Any:
        """The default, which may depend on the settings before it in the section."""
        return self.field.get_default(call_default_factory=True, validated_data=vars(self.section))


def walk(section: Section, prefix: str = "", operational: bool = False) -> Iterator[Setting]:
    """Every setting of a section and of the sections inside it, in the order of their declaration.

    Args:
        prefix: the section's own dotted key.
        operational: True if the section is inside an operational one.
    """
    for key, field in type(section).model_fields.items():
        setting = Setting(section, key, f"{prefix}.{key}" if prefix else key, operational or is_operational(field))
        inside = setting.value if isinstance(setting.value, dict) else {"": setting.value}
        sections = {name: value for name, value in inside.items() if isinstance(value, Section)}
        if not sections:
            yield setting
        for name, value in sections.items():
            yield from walk(value, f"{setting.dotted}.{name}" if name else setting.dotted, setting.operational)


def refuse_ignored(section: Section) -> None:
    """Check that every setting that was given has an effect.

    Raises:
        UserError: naming the setting that is ignored, and why.
    """
    for setting in walk(section):
        for mark in marks(setting.field, Ignored):
            if setting.value != setting.default and (why := _why_ignored(setting, mark)):
                raise UserError(f"{setting.dotted}: has no effect{why}")


def _why_ignored(setting: Setting, mark: Ignored) -> str:
    """The rest of the message, or an empty string where the setting has its effect."""
    remedy = f", because {mark.why}; remove it (default {_shown(setting.default)})"
    if mark.unless is None:
        return remedy
    key, needed = mark.unless
    actual, switch = getattr(setting.section, key), setting.dotted.removesuffix(setting.key) + key
    return "" if actual == needed else f" with {switch}={_shown(actual)}{remedy}, or set {switch}={_shown(needed)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)
