"""Held-out preferences with the prompts under which rewards score them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from xlr.data.preferences import ParallelPreference, Preference, load_parallel_preferences
from xlr.languages import ENGLISH
from xlr.maths.rewards import crosslingual_instruction
from xlr.records import RowKey
from xlr.settings.config import Config
from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.scoreconfig import Reward

_MODES: tuple[Reward, ...] = ("crosslingual", "multilingual")


@dataclass(frozen=True)
class Asked:
    """A preference in a language, with the prompt of the mode that it is scored in."""

    lang: str
    mode: Reward
    pair: Preference

    @property
    def key(self) -> RowKey:
        """It is unique among the preferences of all languages and modes."""
        return self.lang, self.pair.id, self.mode


def asked_of(config: Config, given: str | PreferencesConfig) -> list[Asked]:
    """The preferences of each language under both instructions, in that order. In English they are the same.

    With the reward `translate` among those of the run also under that one, where the answers are not translated yet.

    Raises:
        UserError: the preferences cannot be read.
    """
    by_translation: tuple[Reward, ...] = ("translate",) if "translate" in config.score.weights else ()
    return [
        Asked(lang, mode, _under(mode, lang, config.language_name(lang), one))
        for lang, own in load_parallel_preferences(given, config.model.system_prompt).items()
        for mode in (("multilingual",) if lang == ENGLISH else (*_MODES, *by_translation))
        for one in own
    ]


def to_rate(asked: Sequence[Asked]) -> list[Asked]:
    """The preferences as a reward model reads them: once each, in their own language."""
    return [replace(one, mode="model") for one in asked if one.mode == "multilingual"]


def _under(mode: Reward, lang: str, language: str, one: ParallelPreference) -> Preference:
    """A preference with the prompt that it is scored under, which may name the language."""
    if mode == "multilingual":
        return one.own
    if mode == "translate":
        return replace(one.own, prompt=one.english)
    *before, last = one.english
    instruction = crosslingual_instruction(last["content"], lang, language)
    return replace(one.own, prompt=[*before, {"role": "user", "content": instruction}])
