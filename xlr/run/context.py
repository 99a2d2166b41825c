"""What stages share: configuration, run directory, prompts, tokenizer, models and workers, each loaded once."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypedDict

from xlr.chat.encoding import ChatEncoder, load_tokenizer, require_same_tokenizer
from xlr.chat.format import chat_format
from xlr.data.prompts import load_held_out, load_prompts
from xlr.errors import UserError
from xlr.foreign import hub
from xlr.records import INITIAL, START, ModelKey, Prompt
from xlr.run import stopped
from xlr.run.artifact import Artifact
from xlr.run.directory import RunDir
from xlr.run.files import read_json, sealed, write_json
from xlr.run.manifests import manifest_path, verified
from xlr.settings.config import Config
from xlr.settings.dataconfig import (
    CheckedConfig,
    ParallelPreferencesConfig,
    PreferencesConfig,
    PromptsConfig,
    TurnsConfig,
)
from xlr.terminal.progress import Clock

COMMITS = "hub.json"
Given = TypeVar(
    "Given",
    PromptsConfig,
    PromptsConfig | None,
    CheckedConfig | None,
    TurnsConfig | None,
    str | PreferencesConfig,
    str | PreferencesConfig | None,
)


class _Commits(TypedDict):
    """The file `hub.json` of a run directory."""

    commits: dict[str, str]
    """Hub repository, `owner/model` or `datasets/owner/name`, with the configuration's `@revision` -> commit."""
    seal: str


@dataclass
class Context:
    """One run: its configuration, and everything that stages load from it."""

    config: Config
    run: RunDir = field(init=False)
    given: Config = field(init=False)
    """The configuration before `stop_early` took iterations away."""
    clock: Clock = field(default_factory=Clock)
    """Measures the time of the running stage, by activity."""

    def __post_init__(self) -> None:
        self.run, self.given = RunDir(self.config.run_dir), self.config
        self.config = stopped.limited(self.config, self.run.path)

    @cached_property
    def pool(self) -> Any:
        """The pool of Ray workers, which start with the first task."""
        from xlr.cluster.raypool import Pool

        return Pool(self.config.ray, self.config.model, self.config.generate)

    @cached_property
    def prompts(self) -> dict[str, list[Prompt]]:
        """lang -> training instructions of all iterations; English is always included."""
        return self._load_prompts(self.config.prompts)

    def prompts_of(self, iteration: int) -> dict[str, list[Prompt]]:
        """lang -> training instructions of one iteration; English is always included."""
        section = self.config.at(iteration).prompts
        return self.prompts if section == self.config.prompts else self._load_prompts(section)

    def _load_prompts(self, section: PromptsConfig) -> dict[str, list[Prompt]]:
        return load_prompts(self.pinned(section), self.config.trained_languages, self.config.model.system_prompt)

    @cached_property
    def held_out(self) -> dict[str, list[Prompt]]:
        """lang -> instructions of `evaluate.prompts`, the same in every language; English is always included."""
        section = self.pinned(self.config.evaluate.prompts)
        return (
            load_held_out(section, self.config.evaluated_languages, self.config.model.system_prompt) if section else {}
        )

    @property
    def questions(self) -> list[Prompt]:
        """The held-out instructions that models answer, language by language."""
        return [prompt for lang in self.config.evaluated_languages for prompt in self.held_out.get(lang, ())]

    @cached_property
    def encoder(self) -> ChatEncoder:
        """The tokenizer and chat template that all models of the run share."""
        name = self.model(START if self.config.model.aligned else INITIAL)
        return ChatEncoder(load_tokenizer(name), name, chat_format(self.config.model))

    @property
    def reward_model(self) -> str:
        """The folder of `score.model`; see `located`."""
        assert self.config.score.model is not None  # the configuration was checked
        return self.located(self.config.score.model)

    @cached_property
    def reward_encoder(self) -> ChatEncoder:
        """The tokenizer and chat template of the reward model."""
        return ChatEncoder(load_tokenizer(self.reward_model), self.reward_model)

    def encoder_of(self, model: ModelKey) -> ChatEncoder:
        """The tokenizer and chat template of a model. Models of `evaluate.models` have their own."""
        if isinstance(model, int):
            return self.encoder
        return ChatEncoder(load_tokenizer(self.model(model)), self.model(model))

    def model(self, model: ModelKey) -> str:
        """The folder of pi^t, of pi_I (`INITIAL`), or of one of `evaluate.models`; see `located`.

        pi^0 is `model.aligned`, or trained by the align stage.
        """
        if isinstance(model, str):
            return self.located(self.config.evaluate.models[model])
        if model <= INITIAL:
            return self.located(self.config.model.initial)
        if model == START and self.config.model.aligned is not None:
            return self.located(self.config.model.aligned)
        return str(self.run.iteration(model) / "model")

    @cached_property
    def commits(self) -> dict[str, str]:
        """Hub repository -> the commit that this run uses: of an earlier start, or looked up since."""
        return read_commits(self.run.path)

    @property
    def repositories(self) -> list[hub.Repository]:
        """The models and datasets of the configuration that are on the hub."""
        models = [hub.named(name) for name in self.config.opened_models if not Path(name).is_absolute()]
        datasets = [hub.named(name, "dataset") for name in self.config.opened_datasets if hub.is_dataset_name(name)]
        return list(dict.fromkeys([*models, *datasets]))

    def look_up(self) -> None:
        """Choose the commit of each repository, unless the run has one, and download what is not in the cache.

        Raises:
            UserError: the hub does not give a repository.
        """
        for repository in self.repositories:
            key = str(repository)
            self.commits[key] = hub.snapshot(repository, self.commits.get(key)).name

    def record_commits(self) -> None:
        """Write the commits to the run directory, where later processes of this run read them."""
        if self.commits != read_commits(self.run.path):
            write_json(self.run.path / COMMITS, sealed({"commits": self.commits}))

    def located(self, name: str) -> str:
        """A model of the configuration: a hub name whose commit is known as its folder in the cache, else `name`."""
        return str(hub.snapshot(hub.named(name), self.commits[name])) if name in self.commits else name

    def pinned(self, given: Given) -> Given:
        """Prompts or preferences of the configuration; a hub dataset whose commit is known as `owner/name@commit`."""
        if given is None:
            return given
        if isinstance(given, ParallelPreferencesConfig) and given.english is not None:
            given = given.model_copy(update={"english": self.pinned(given.english)})
        path = given if isinstance(given, str) else given.path
        commit = self.commits.get(f"datasets/{path}")
        if commit is None:
            return given
        named = f"{hub.named(path).name}@{commit}"
        return named if isinstance(given, str) else given.model_copy(update={"path": named})

    def require_model(self, model: ModelKey) -> str:
        """Like `model`, but checks that the stage that trains the model has finished, and that its files are intact.

        Raises:
            UserError: it has not, or a file was changed or added.
        """
        path = self.model(model)
        made_here = isinstance(model, int) and Path(path).parent == self.run.iteration(max(model, START))
        if made_here and not manifest_path(Path(path)).is_file():
            command = f"align {self.run.path}" if model == START else f"train {self.run.path} --iteration {model}"
            raise UserError(f"{path}: not finished yet; run `xlr {command}` first")
        if made_here:
            verified(Path(path), exact=True)
        return path

    def require_same_tokenizer(self, model: str) -> None:
        """Check that a model has the run's tokenizer, without which log-probabilities cannot be compared.

        Raises:
            UserError: it has another.
        """
        own = self.encoder
        if model != own.name:
            templates = self.config.model.chat_template is None
            require_same_tokenizer(own.tokenizer, load_tokenizer(model), own.name, model, templates)

    def reward_reference(self, iteration: int) -> int:
        """The key of the reward's reference model in iteration t. The reward's policy is pi^(t-1)."""
        return INITIAL if self.config.at(iteration).score.reference == "initial" else iteration - 2

    def end_with(self, iteration: int) -> None:
        """Leave out the iterations after this one, which the run will not have."""
        self.config = self.config.model_copy(update={"iterations": iteration})

    def close(self) -> None:
        """End the workers, which frees the machine's memory and GPUs for training."""
        if "pool" in self.__dict__:
            self.pool.close()


def read_commits(run: Path) -> dict[str, str]:
    """The commits of hub models and datasets that a run directory records.

    Raises:
        UserError: their file is damaged.
    """
    path = run / COMMITS
    if not path.is_file():
        return {}
    found = read_json(path, _Commits, "restore it from a copy, or use another run_dir")
    return dict(found["commits"])


def require(artifact: Artifact, command: str) -> None:
    """Check that an artefact that a stage reads is finished.

    Args:
        command: the command that makes it, for the message.

    Raises:
        UserError: it is not finished, or was made with another configuration.
    """
    if artifact.manifest() is None:
        raise UserError(f"{artifact.folder}: not finished yet; run `{command}` first")
