"""Names of languages as inputs of artefacts whose instructions hold them."""

from collections.abc import Iterable
from dataclasses import dataclass

from xlr.languages import NAMES
from xlr.settings.config import Config


@dataclass(frozen=True)
class LanguageName:
    """The name of a language."""

    name: str

    def digest(self) -> str:
        """The name itself, which is short."""
        return self.name

    def __str__(self) -> str:
        return self.name


def language_names(config: Config, langs: Iterable[str]) -> dict[str, LanguageName]:
    """The names that decide instructions: those that the configuration gives, and those that a library may change."""
    names = {lang: config.language_name(lang) for lang in langs}
    return {f"name of {lang}": LanguageName(name) for lang, name in names.items() if name != NAMES.get(lang)}
