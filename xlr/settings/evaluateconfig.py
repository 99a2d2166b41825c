"""Settings of stage 5: what models are measured on."""

from typing import Annotated

from pydantic import Field

from xlr.settings.dataconfig import (
    BenchmarksConfig,
    CheckedConfig,
    ParallelPreferencesConfig,
    PromptsConfig,
    TurnsConfig,
)
from xlr.settings.generateconfig import Temperature, TopP
from xlr.settings.languageconfig import Language
from xlr.settings.schema import OPERATIONAL, Location, Section

ModelName = Annotated[str, Field(pattern=r"^[a-zA-Z][\w.-]{0,63}$")]


class EvaluateConfig(Section):
    """Stage 5: evaluate models on held-out prompts and preferences."""

    prompts: PromptsConfig | None = None
    """Held-out parallel instructions. null evaluates preferences only."""
    languages: Annotated[tuple[Language, ...], Field(min_length=1)] | None = None
    """The languages that models answer in, written as `languages`; they may include languages without training. null
    uses the languages of the run."""
    preferences: Annotated[str | ParallelPreferencesConfig | None, Location.DATA] = None
    """Held-out preferences in the format of align.preferences: a file in English, a folder with a file for each
    language, such as en.jsonl, or a dataset in English or with a part for each language. A row's English prompt is that
    of the same id in English, or its field `english`. They are scored under both instructions, and by the run's other
    rewards but a judge."""
    checked: CheckedConfig | None = None
    """Questions with right answers, such as those of MGSM. Models answer them greedily; the share of right answers
    shows what alignment costs or brings, without a judge."""
    turns: TurnsConfig | None = None
    """Questions of several turns, such as those of MT-Bench. Models answer them turn by turn, and the judge rates each
    answer from 1 to 10."""
    benchmarks: BenchmarksConfig | None = None
    """Benchmarks of multiple choice: what alignment costs or brings elsewhere."""
    every: Annotated[int, Field(ge=1, le=1000), OPERATIONAL] = 1
    """Evaluate and judge every so many iterations: 2 leaves out iterations 1, 3, ... pi^0 and the last iteration are
    always evaluated."""
    temperature: Temperature = 0.6
    """Sampling temperature."""
    top_p: TopP = 0.9
    """Nucleus sampling, as generate.top_p."""
    max_new_tokens: int = Field(2048, ge=1, le=10_000_000)
    """Maximum length of an answer, in tokens."""
    models: Annotated[dict[ModelName, str], OPERATIONAL, Location.HUB] = Field({})
    """More models to evaluate and judge like those of the iterations: a name, and a Hugging Face folder or hub name.
    Each uses its own tokenizer and chat template."""

    @property
    def asked(self) -> dict[str, PromptsConfig]:
        """The sets of questions that models answer, by their key."""
        given = {"prompts": self.prompts, "checked": self.checked, "turns": self.turns}
        return {f"evaluate.{name}": section for name, section in given.items() if section is not None}
