"""Which settings decide results, as flat mappings: what artefacts, reports and trackers hold of a configuration."""

from typing import Any

from xlr.settings.languageconfig import NamedLanguage
from xlr.settings.schema import Later, Location, Section, marks, walk


def settings(section: Section, prefix: str = "") -> dict[str, Any]:
    """The settings of a section, or of a whole configuration, that may change a result: `{"train.beta": 0.1, ...}`.

    A language with a name of its own stands there as a text with both.
    """
    return {setting.dotted: _plain(setting.value) for setting in walk(section, prefix) if not setting.operational}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(str(one) if isinstance(one, NamedLanguage) else one for one in value)
    return value


def deciding(section: Section, prefix: str) -> dict[str, Any]:
    """The settings of a section that decide an artefact: all but paths, whose content is an input of the artefact.

    A setting that is marked `Later` and has its default is left out, so that older run directories go on.
    """
    paths = {Location.PATH, Location.HUB, Location.DATA}
    return {
        setting.dotted: setting.value
        for setting in walk(section, prefix)
        if not setting.operational
        and not paths.intersection(marks(setting.field, Location))
        and not (marks(setting.field, Later) and setting.value == setting.default)
    }
