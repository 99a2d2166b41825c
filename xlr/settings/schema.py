"""What settings are declared with: the base of every section, and marks that other code reads from a field.

A mark is written in a field's `Annotated[...]`, so a new setting is complete where it is declared.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationInfo, WrapValidator, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from xlr.errors import UserError
from xlr.foreign.texts import control_in, is_blank

_LONGEST_NAME, _LONGEST_PATH = 255, 4096  # in bytes, as Linux allows


class Section(BaseModel):
    """A section of the configuration: frozen, without unknown keys, and every value of exactly its type.

    A boolean is no number, and a text is no number. A text is not empty, and has no control characters or line breaks
    unless its field is marked `Lines`.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _tuple(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value  # YAML has lists, and the fields have tuples

    @field_validator("*", mode="after")
    @classmethod
    def _usable_texts(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        for text in _texts(value):
            if problem := _problem(text, field):
                raise PydanticCustomError("text", "{problem}", {"problem": problem})
        return value


# Marks a setting that changes how fast a stage runs or what it shows, never what it computes.
OPERATIONAL: Any = Field(json_schema_extra={"operational": True})


class Location(Enum):
    """Marks a setting that names a file or folder, so that loading makes its path absolute."""

    PATH = "path"
    HUB = "path, or name on the Hugging Face hub"
    DATA = "path, or dataset owner/name on the Hugging Face hub"
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
    unless: tuple[Any, ...] | None = None
    """Key, and the values with which the setting has its effect: one of them, or a list with one of them. None: it
    never has one."""


class Lines(Enum):
    """Marks a setting whose texts may have line breaks and tabs, and may be empty."""

    ALLOWED = "allowed"


class Varying(Enum):
    """Marks a setting that may differ between the iterations of a run."""

    BY_ITERATION = "or a list by iteration"


def _one_or_each(value: Any, validate: Callable[[Any], Any]) -> Any:
    if not isinstance(value, tuple):
        return validate(value)
    if not value:
        raise PydanticCustomError("empty", "is an empty list; give one value, or one for each iteration")
    return tuple(map(validate, value))


class _ListToo:
    """Adds a list of values to the JSON schema of one."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        one = handler(schema)
        return {"anyOf": [*one.get("anyOf", [one]), {"type": "array", "items": one, "minItems": 1}]}


class AutoToo:
    """Adds the word auto to the JSON schema of a number."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"anyOf": [handler(schema), {"const": "auto"}]}


Value = TypeVar("Value")
ByIteration = Annotated[
    Value, Varying.BY_ITERATION, _ListToo(), WrapValidator(_one_or_each), PlainSerializer(lambda value: value)
]
"""A value, or a list of values: that of iteration 1, of iteration 2, and so on. The last holds for all that follow.
Stages read it through `Config.at`, which picks the value of an iteration."""


class Later(Enum):
    """Marks a setting that run directories of earlier versions do not record, and whose default is what they did."""

    ADDED = "added later"


Mark = TypeVar("Mark", Location, Ignored, Lines, Varying, Later)


def marks(field: FieldInfo, kind: type[Mark]) -> list[Mark]:
    """The marks of one kind on a field."""
    return [mark for mark in field.metadata if isinstance(mark, kind)]


def _texts(value: Any) -> Iterator[str]:
    """Every text in a value: itself, the elements of a list, the keys and values of a mapping."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts((*value, *value.values()))
    elif isinstance(value, list | tuple):
        for element in value:
            yield from _texts(element)


def _problem(text: str, field: FieldInfo) -> str | None:
    """What is wrong with the text of a field, and what to do; None if nothing is."""
    lines = bool(marks(field, Lines))
    if character := control_in(text, lines):
        if character == "\\u000a":
            return "contains a line break; write it on one line (in YAML, >- in place of > or |)"
        return f"contains the control character {character}; remove it"
    if not lines and is_blank(text):
        return "is empty; fill it in, or remove the key"
    names = [len(name.encode()) for name in text.split("/")]
    if marks(field, Location) and (max(names) > _LONGEST_NAME or sum(names) + len(names) > _LONGEST_PATH):
        return f"is too long; a path has at most {_LONGEST_PATH} bytes, and a name in it {_LONGEST_NAME}"
    return None


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


SomeSection = TypeVar("SomeSection", bound=Section)


def at_iteration(section: SomeSection, iteration: int) -> SomeSection:
    """The section with one value in place of each list by iteration.

    Args:
        iteration: from 1 on; 0, the start, has the values of iteration 1.
    """
    own: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        if isinstance(value, Section):
            own[key] = at_iteration(value, iteration)
        elif isinstance(value, tuple) and marks(field, Varying):
            own[key] = value[min(max(iteration, 1), len(value)) - 1]
    return section.model_copy(update=own)


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
    key, *needed = mark.unless
    actual, switch = getattr(setting.section, key), setting.dotted.removesuffix(setting.key) + key
    if not set(needed).isdisjoint(actual if isinstance(actual, tuple) else (actual,)):
        return ""
    return f" with {switch}={_shown(actual)}{remedy}, or set {switch}={' or '.join(map(_shown, needed))}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value)
