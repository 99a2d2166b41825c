"""Settings of a list of languages: tags, or tags with the names that instructions give them."""

from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, Discriminator, Tag
from pydantic_core import PydanticCustomError

from xlr import languages
from xlr.errors import UserError
from xlr.settings.schema import Section


def _canonical(tag: str) -> str:
    try:
        return languages.canonical(tag)
    except UserError as error:
        raise PydanticCustomError("language", "{problem}", {"problem": str(error)}) from error


def _with_name(tag: str) -> str:
    try:
        languages.name(tag)
    except UserError as error:
        raise PydanticCustomError("language", "{problem}", {"problem": str(error)}) from error
    return languages.canonical(tag)


LanguageTag: TypeAlias = Annotated[str, AfterValidator(_canonical)]


class NamedLanguage(Section):
    """A language with the name that instructions give it."""

    tag: LanguageTag
    """Its BCP 47 tag."""
    name: str
    """Its English name, as in "using only Hausa"."""

    def __str__(self) -> str:
        return f"{self.tag} ({self.name})"


def _kind(value: Any) -> str:
    return "section" if isinstance(value, dict | NamedLanguage) else "tag"


Language: TypeAlias = Annotated[
    Annotated[str, AfterValidator(_with_name), Tag("tag")] | Annotated[NamedLanguage, Tag("section")],
    Discriminator(_kind),
]


def tag_of(language: str | NamedLanguage) -> str:
    """The tag of a language."""
    return language if isinstance(language, str) else language.tag
