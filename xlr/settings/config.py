"""Every setting of a run: the typed tree, and the checks across its sections. `configfile` reads and writes it."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from pydantic import Field, model_validator

from xlr import languages
from xlr.errors import UserError
from xlr.records import START, DType, ModelKey
from xlr.settings.dataconfig import ParallelPreferencesConfig, PromptsConfig
from xlr.settings.evaluateconfig import EvaluateConfig
from xlr.settings.generateconfig import GenerateConfig
from xlr.settings.judgeconfig import JudgeConfig
from xlr.settings.languageconfig import Language, NamedLanguage, tag_of
from xlr.settings.modelconfig import ModelConfig
from xlr.settings.pairconfig import PairConfig
from xlr.settings.schema import (
    OPERATIONAL,
    AutoToo,
    Location,
    Section,
    Varying,
    at_iteration,
    marks,
    refuse_ignored,
    walk,
)
from xlr.settings.scoreconfig import IMPLICIT, ScoreConfig
from xlr.settings.slurmconfig import SlurmConfig
from xlr.settings.trainconfig import AlignConfig, TrainConfig

MOST_AUTOMATIC = 10
"""The most iterations with `iterations: auto`."""


class RayConfig(Section):
    """The Ray actors that sample and score. Nothing here changes a result."""

    actors: Annotated[int | None, Field(ge=1, le=100_000), OPERATIONAL] = None
    """Number of actors. null starts one per GPU, or as many as the CPUs allow."""
    cpus_per_actor: Annotated[int | None, Field(ge=1, le=10_000), OPERATIONAL] = None
    """Threads per actor. null uses up to 4 beside a GPU, or shares all cores of a CPU machine among its actors."""
    gpus_per_actor: Annotated[float | None, Field(ge=0, le=1024), OPERATIONAL] = None
    """GPUs per actor; a fraction shares one GPU. null uses 1 where there are GPUs."""
    task_minutes: Annotated[float, Field(ge=0.001, le=1_000_000), OPERATIONAL] = 120
    """Minutes after which a task counts as hung. Its worker is ended and another worker gets the task."""
    one_model_at_a_time: Annotated[bool, OPERATIONAL] = False
    """Score with the policy first and the reference second, for GPUs that do not hold both models."""
    dashboard: Annotated[bool, OPERATIONAL] = False
    """Start Ray's dashboard on the loopback address."""


class Config(Section):
    """The settings of one run."""

    run_dir: Annotated[str, OPERATIONAL, Location.PATH]
    """Folder of the run's artefacts."""
    reuse: Annotated[tuple[str, ...], OPERATIONAL, Location.PATH] = ()
    """Other run directories, or folders of run directories, from which finished work is taken over by reference where
    its settings and inputs are the same. Of two runs that name the same folder, the second waits while the first makes
    what both need."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of sampling and data order."""
    iterations: Annotated[int, Field(ge=1, le=1000), OPERATIONAL, AutoToo()] = 2
    """How often generate, score, pair and train are repeated. It may be raised later. auto is 10 with stop_early."""
    stop_early: Annotated[bool, OPERATIONAL] = False
    """End the run after an iteration if what was measured speaks against another one, by the rule of the report. Each
    iteration is then evaluated and judged before the next begins."""
    languages: tuple[Language, ...] = Field(min_length=1)
    """BCP 47 tags of the languages to train on, such as es, ha or pt-BR; English is trained on only if it is listed.
    `{tag: ha, name: Hausa}` gives a language the name that instructions call it by."""
    model: ModelConfig
    prompts: PromptsConfig
    align: AlignConfig = AlignConfig()
    generate: GenerateConfig = GenerateConfig()
    score: ScoreConfig = ScoreConfig()
    pair: PairConfig = PairConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    judge: JudgeConfig = JudgeConfig()
    ray: RayConfig = RayConfig()
    slurm: Annotated[SlurmConfig, OPERATIONAL] = SlurmConfig()

    def at(self, iteration: int) -> "Config":
        """The settings of one iteration: with one value in place of each list by iteration."""
        return at_iteration(self, iteration)

    @property
    def trained_languages(self) -> tuple[str, ...]:
        """The tags of the languages to train on."""
        return tuple(map(tag_of, self.languages))

    @property
    def evaluated_languages(self) -> tuple[str, ...]:
        """The tags of the languages of held-out answers."""
        return tuple(map(tag_of, self.evaluate.languages or self.languages))

    @property
    def all_languages(self) -> tuple[str, ...]:
        """The tags of both."""
        return tuple(dict.fromkeys((*self.trained_languages, *self.evaluated_languages)))

    def language_name(self, lang: str) -> str:
        """The English name of a language, as instructions call it: the configuration's own, or its common one."""
        given = (one for one in _named(self) if one.tag == lang)
        return next((one.name for one in given), None) or languages.name(lang)

    @property
    def scoring_dtype(self) -> DType:
        """The precision in which responses and held-out preferences are scored."""
        return self.score.dtype or self.model.dtype

    @property
    def trained_iterations(self) -> list[int]:
        """The iterations that sample, score, pair and train: all but the start."""
        return list(range(START + 1, self.iterations + 1))

    @property
    def models(self) -> list[ModelKey]:
        """All models of the run: pi^0, the model of each iteration, then those of evaluate.models."""
        return [*range(START, self.iterations + 1), *self.evaluate.models]

    @property
    def evaluated_models(self) -> list[ModelKey]:
        """Those that are evaluated and judged: see evaluate.every."""
        every, last = self.evaluate.every, self.iterations
        return [model for model in self.models if not isinstance(model, int) or model % every == 0 or model == last]

    @property
    def opened_models(self) -> list[str]:
        """Paths and hub names of all models that stages open and that the run does not make itself."""
        judge = self.judge.model if self.judge.backend == "transformers" else None
        return [
            name
            for name in (
                self.model.initial,
                self.model.aligned,
                self.score.model,
                *self.evaluate.models.values(),
                judge,
            )
            if name
        ]

    @property
    def opened_datasets(self) -> list[str]:
        """Paths and hub names of all prompts and preferences."""
        evaluate = self.evaluate
        preferences = evaluate.preferences
        english = preferences.english if isinstance(preferences, ParallelPreferencesConfig) else None
        given = (self.prompts, *evaluate.asked.values(), self.align.preferences, preferences, english)
        return [one if isinstance(one, str) else one.path for one in given if one is not None]

    @property
    def baseline_model(self) -> ModelKey | None:
        """The model of this run that the judge compares with; None if the baseline is a folder of reference outputs."""
        baseline = self.judge.baseline
        return baseline if isinstance(baseline, int) or baseline in self.evaluate.models else None

    @model_validator(mode="before")
    @classmethod
    def _automatic(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("iterations") == "auto":
            return tree | {"iterations": MOST_AUTOMATIC, "stop_early": True}
        return tree

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        _check_languages("languages", self.trained_languages)
        _check_lists(self)
        _check_system_prompt(self)
        _check_thinking(self)
        _check_languages("evaluate.languages", self.evaluated_languages)
        _check_names(self)
        _check_aligned_model(self)
        _check_judged_answers(self)
        _check_stop_early(self)
        _check_baseline(self)
        _check_reward_model(self)
        _check_grading_judge(self)
        _check_per_token(self)
        _check_kept_shares(self)
        _check_pairs_by_translations(self)
        _check_translated_languages(self)
        _check_replay(self)
        _check_losses(self)
        refuse_ignored(self)
        return self


def _named(config: Config) -> Iterator[NamedLanguage]:
    """The languages to which the configuration gives a name."""
    for one in (*config.languages, *(config.evaluate.languages or ())):
        if isinstance(one, NamedLanguage):
            yield one


def _check_languages(key: str, tags: Sequence[str]) -> None:
    if duplicates := [tag for tag, count in Counter(tags).items() if count > 1]:
        raise UserError(f"{key}: {duplicates[0]!r} is a duplicate; remove it")


def _check_lists(config: Config) -> None:
    """Check that lists by iteration stand only where something is repeated, and that prompts have one limit."""
    for once, section in (("align", config.align), ("evaluate", config.evaluate)):
        for setting in walk(section, once):
            if isinstance(setting.value, tuple) and marks(setting.field, Varying):
                raise UserError(
                    f"{setting.dotted}: is a list by iteration, but {once} has no iterations; give one value"
                )
    for key, prompts in {"prompts": config.prompts, **config.evaluate.asked}.items():
        if prompts.slice is not None and prompts.limit is not None:
            raise UserError(f'{key}: has a limit and a slice; write the limit as slice: ":{prompts.limit}"')


def _check_names(config: Config) -> None:
    tags: dict[str, str] = {}
    for tag in config.all_languages:
        if (other := tags.setdefault(name := config.language_name(tag), tag)) != tag:
            raise UserError(f"languages: {other} and {tag} have the same name, {name}; give one of them another name")
    for one in _named(config):
        if config.language_name(one.tag) != one.name:
            raise UserError(
                f"evaluate.languages: {one} has another name in languages, {config.language_name(one.tag)}; give it "
                "one name"
            )


def _check_aligned_model(config: Config) -> None:
    if config.model.aligned is None and config.align.preferences is None:
        raise UserError(
            "model.aligned: not set; name the English-aligned model, or set align.preferences to English preference "
            "pairs on which the align stage trains one"
        )


def _check_replay(config: Config) -> None:
    if config.train.replay_english and config.align.preferences is None:
        raise UserError(
            "train.replay_english: there are no English preferences; set align.preferences to those that the aligned "
            "model was trained on, or remove it"
        )


def _check_judged_answers(config: Config) -> None:
    if config.judge.model and not (config.evaluate.prompts or config.evaluate.turns or "judge" in config.score.weights):
        raise UserError("judge.model: there are no answers to judge; set evaluate.prompts, or remove judge.model")


def _check_stop_early(config: Config) -> None:
    evaluate = config.evaluate
    if not config.stop_early:
        return
    if not (evaluate.prompts or evaluate.preferences or evaluate.checked):
        raise UserError(
            "stop_early: nothing is measured that it could go by; set evaluate.prompts, .preferences or .checked"
        )
    if evaluate.every > 1:
        raise UserError("evaluate.every: stop_early decides after each iteration; set it to 1, or remove stop_early")
    if config.judge.model and config.baseline_model not in (None, START):
        raise UserError(
            "judge.baseline: with stop_early each iteration is judged before the next is made; compare with iteration "
            "0, or with a folder of reference outputs"
        )


def _check_baseline(config: Config) -> None:
    baseline, last = config.baseline_model, config.iterations
    if isinstance(baseline, int) and baseline > last:
        raise UserError(f"judge.baseline: there is no iteration {baseline}; choose one from 0 to {last}")
    if config.judge.model and isinstance(baseline, int) and baseline not in config.evaluated_models:
        raise UserError(
            f"judge.baseline: iteration {baseline} has no answers with evaluate.every={config.evaluate.every}; choose "
            "0, or evaluate every iteration"
        )


def _check_per_token(config: Config) -> None:
    given, weights = config.pair.per_token, config.score.weights
    if (any(given) if isinstance(given, tuple) else given) and (len(weights) > 1 or not weights.keys() <= IMPLICIT):
        raise UserError(
            "pair.per_token: only one implicit reward is a sum over tokens; remove it, or name one of crosslingual, "
            "multilingual and translate in score.reward"
        )


def _check_kept_shares(config: Config) -> None:
    given = config.pair.keep if isinstance(config.pair.keep, tuple) else (config.pair.keep,)
    for shares in given:
        for lang in shares if isinstance(shares, dict) else ():
            if lang not in config.trained_languages:
                raise UserError(f"pair.keep: {lang!r} is not a language of the run; remove it, or add it to languages")
    parts = [share for shares in given for share in (shares.values() if isinstance(shares, dict) else (shares,))]
    if config.pair.keep_margins != "largest" and config.pair.by == "rewards" and all(share == 1 for share in parts):
        raise UserError("pair.keep_margins: has no effect, because pair.keep keeps all pairs; lower it")


def _check_pairs_by_translations(config: Config) -> None:
    if config.pair.by != "translations":
        return
    if "en" not in config.trained_languages or len(config.languages) == 1:
        raise UserError(
            "pair.by: translations go from English to the other languages and back; add en and another language to "
            "languages, or set pair.by=rewards"
        )
    if explicit := config.score.weights.keys() - IMPLICIT:
        raise UserError(f"score.reward: {min(explicit)} has no effect with pair.by=translations, which scores nothing")


def _check_reward_model(config: Config) -> None:
    wanted = "model" in config.score.weights
    if wanted and config.score.model is None:
        raise UserError("score.model: not set; name the reward model, which score.reward asks for")
    if config.score.model is not None and not wanted:
        raise UserError("score.model: has no effect; set score.reward to model, or to weights that name it")


def _check_grading_judge(config: Config) -> None:
    if "judge" not in config.score.weights:
        if config.score.grading_template is not None:
            raise UserError("score.grading_template: has no effect; set score.reward to judge, or to weights with it")
        return
    if config.judge.model is None:
        raise UserError("judge.model: not set; name the judge, which score.reward asks for")
    if config.judge.serve is not None:
        raise UserError(
            "judge.serve: the workers hold the GPUs with score.reward=judge; start it yourself, set judge.base_url"
        )


def _check_translated_languages(config: Config) -> None:
    if config.score.translation != "plain" and ("translate" not in config.score.weights or config.pair.by != "rewards"):
        raise UserError("score.translation: has no effect; set score.reward to translate, or to weights that name it")
    if "translate" in config.score.weights and set(config.trained_languages) == {"en"}:
        raise UserError(
            "score.reward: translate leaves English out, and languages contains nothing else; add a language, or "
            "choose another reward"
        )


def _check_losses(config: Config) -> None:
    for stage, train in (("align", config.align), ("train", config.train)):
        losses = len(train.loss_types)
        if train.loss_weights is not None and len(train.loss_weights) != losses:
            raise UserError(
                f"{stage}.loss_weights: has {len(train.loss_weights)}, but {stage}.loss_type names {losses}; give each "
                "loss one weight"
            )
        if "kto" in train.loss_types and train.reference_mode == "cached":
            raise UserError(
                f"{stage}.reference_mode: kto needs the reference on responses to other prompts, too; set it to frozen"
            )
        if "exo_pair" in train.loss_types and train.label_smoothing == 0:
            raise UserError(
                f"{stage}.label_smoothing: is 0, where the loss exo_pair is infinite; raise it, for example to 0.001"
            )


def _check_system_prompt(config: Config) -> None:
    given, used = config.model.system_prompt, {languages.ENGLISH, *config.all_languages}
    if isinstance(given, dict) and (odd := used.symmetric_difference(given)):
        lang = min(odd)
        problem = (
            f"has no text for {lang}; add one (English is needed because responses are scored under it)"
            if lang in used
            else f"{lang!r} is not a language of the run; remove it"
        )
        raise UserError(f"model.system_prompt: {problem}")


def _check_thinking(config: Config) -> None:
    translates = {
        "score.reward=translate": "translate" in config.score.weights,
        "pair.by=translations": config.pair.by == "translations",
    }
    for given, asked in translates.items():
        if config.model.thinking != "skipped" and asked:
            raise UserError(
                f"model.thinking={config.model.thinking}: does not go with {given}, because translations would be "
                f"thought about, too; choose another {given.partition('=')[0]}, or model.thinking=skipped"
            )
