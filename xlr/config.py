"""The typed configuration tree: one YAML file and dotted overrides.

Relative paths are relative to the folder the command runs in; a resolved configuration holds absolute ones.
`{recipes}` in a path stands for the folder of the files that ship with xlr.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from xlr.errors import UserError

SHARED_PROMPT = "xlr_shared_prompt"

RECIPES = Path(__file__).parent / "recipes"

# A setting that changes how fast a stage runs or what it shows, never what it computes.
OPERATIONAL = {"operational": True}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


Section = TypeVar("Section", bound=_Section)


class ModelConfig(_Section):
    """The two models the implicit reward is made of."""

    initial: str
    """pi_I, the model before preference alignment: a Hugging Face folder or hub name."""
    aligned: str | None = None
    """pi^0, the same model aligned on English preferences; without it the align stage makes it."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of weights and arithmetic; auto is bfloat16 on GPUs and float32 on CPUs."""
    attn_implementation: str = SHARED_PROMPT
    """xlr_shared_prompt (packed, a prompt computed once for all its responses), a flash attention of transformers'
    (flash_attention_2, ...: packed sequences), or another name it knows (sdpa, eager: right-padded rows)."""


class PromptsConfig(_Section):
    """Parallel instructions."""

    path: str
    """A folder of {lang}.jsonl or {lang}.json files, or a datasets folder with a column a language."""
    limit: int | None = Field(None, ge=1)
    """How many instructions a language are used, in the order of the English file; all by default."""


class GenerateConfig(_Section):
    """Stage 1: sampling responses."""

    backend: Literal["transformers", "vllm"] = "transformers"
    """What samples: transformers' static batches, or vLLM, whose random numbers are others."""
    num_samples: int = Field(10, ge=1)
    """Responses a prompt."""
    temperature: float = Field(0.9, gt=0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus sampling: the share of probability that is kept."""
    top_k: int = Field(0, ge=0)
    """How many of the likeliest tokens are kept; 0 keeps all."""
    max_new_tokens: int = Field(2400, ge=1)
    """Tokens after which a response is cut off."""
    batch_size: int = Field(default_factory=lambda given: 1024 if given.get("backend") == "vllm" else 64, ge=1)
    """Responses of one task: all at once with transformers (64 by default), a queue with vLLM (1024 by default), which
    should be long against what the engine computes at once, since it empties at the end of a task."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share a model in vLLM: what each of its actors gets, whatever ray.gpus_per_actor says."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1, json_schema_extra=OPERATIONAL)] = 0.9
    """Share of a GPU's memory that vLLM takes; on CPUs VLLM_CPU_KVCACHE_SPACE says how many GiB its cache gets."""


Reward = Literal["crosslingual", "multilingual", "translate"]


class ScoreConfig(_Section):
    """Stage 2: the implicit reward."""

    reward: Reward = "crosslingual"
    """What a response is scored under: the prefixed English instruction, its own instruction, or its English
    translation under the English instruction (English itself is then left out)."""
    reference: Literal["initial", "previous"] = "initial"
    """The reward's reference: always pi_I, or the model the policy was trained from."""
    batch_tokens: int = Field(16384, ge=1)
    """Tokens scored together."""
    max_length: int = Field(8192, ge=2)
    """Longer prompt + response are left out, counted and reported, in tokens."""


Flaw = Literal["truncated", "repeated", "wrong_language", "duplicate"]


class PairConfig(_Section):
    """Stage 3: preference pairs."""

    filters: tuple[Flaw, ...] = ()
    """Responses that are left out before pairing: truncated (cut off at max_new_tokens), repeated (more than half of
    its 4-grams of tokens stand in it earlier), wrong_language, duplicate (the text of an earlier sample)."""

    length_control: bool = True
    """Penalise length so that chosen and rejected are equally long on average, per language."""
    upper_bound: float | None = None
    """Responses whose penalised reward reaches this are never chosen; no bound by default."""
    export_jsonl: bool = False
    """Also write pairs.jsonl beside the Parquet file."""


Tracker = Literal["tensorboard", "wandb", "mlflow"]


class TrainConfig(_Section):
    """Stage 4: full fine-tuning with DPO and NLL."""

    beta: float = Field(0.1, gt=0)
    """Inverse temperature of the DPO loss."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """The preference loss."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Assumed probability that a preference is flipped (sigmoid only)."""
    nll_weight: float = Field(1.0, ge=0)
    """Weight of the chosen response's negative log-likelihood a token."""
    reference: Literal["start", "initial"] = "start"
    """The DPO reference: the model the iteration starts from, or pi_I."""
    reference_mode: Literal["frozen", "cached"] = "frozen"
    """frozen holds the reference beside the policy; cached lets the Ray scorers compute its log-probabilities of all
    pairs before training, which then needs neither its memory nor its time."""
    learning_rate: float = Field(5e-7, gt=0)
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Schedule, by transformers' names."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps over which the learning rate rises."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW's first moment decay."""
    adam_beta2: float = Field(0.999, ge=0, lt=1)
    """AdamW's second moment decay."""
    adam_epsilon: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, ge=0)
    """Gradient clipping; 0 turns it off."""
    num_train_epochs: int = Field(1, ge=1)
    """Passes over the pairs."""
    max_steps: int | None = Field(None, ge=1)
    """Stop after this many optimizer steps; the schedule ends there too."""
    global_batch_size: int = Field(32, ge=1)
    """Pairs of an optimizer step, over all ranks."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens a rank computes at once; does not change the loss beyond rounding."""
    max_length: int = Field(4096, ge=2)
    """Pairs with a longer prompt + response are left out, counted and reported, in tokens."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Compute activations again in the backward pass instead of keeping them: true for all of a layer, selective for
    all but the results of matrix products and attention, which are half of the memory and nearly all of the time."""
    ds_config: str = "zero3"
    """DeepSpeed JSON of the policy: a file, or the name of a shipped one (see ds_configs/)."""
    reference_ds_config: str = "reference"
    """DeepSpeed JSON of the frozen reference."""
    processes: Annotated[int | None, Field(ge=1, json_schema_extra=OPERATIONAL)] = None
    """Training processes on this machine: one a GPU by default, one on CPUs."""
    save_steps: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 50
    """Steps between checkpoints; 0 writes none, except on SIGTERM and SIGUSR1."""
    save_minutes: Annotated[float, Field(ge=0, json_schema_extra=OPERATIONAL)] = 30
    """Minutes after which a checkpoint is written at the latest; 0 for no such limit."""
    save_total_limit: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 1
    """Checkpoints that are kept; the oldest goes after a new one is whole."""
    eval_pairs: int = Field(0, ge=0)
    """Pairs of each language that are kept out of training and measured instead."""
    eval_steps: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 50
    """Steps between measurements of the held-out pairs."""
    report_to: Annotated[tuple[Tracker, ...], Field(json_schema_extra=OPERATIONAL)] = ("tensorboard",)
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, each with its own environment
    variables."""


class AlignConfig(TrainConfig):
    """Stage 0: making pi^0 from pi_I on English preferences, with the same trainer."""

    preferences: str | None = None
    """A JSONL or Parquet file with prompt, chosen, rejected (message lists or strings)."""


class EvaluateConfig(_Section):
    """Stage 5: held-out prompts and preferences."""

    prompts: PromptsConfig | None = None
    """Held-out parallel instructions; without them only preferences are evaluated."""
    languages: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Codes of the languages that models answer in, those that they are not trained in among them; the run's own by
    default."""
    preferences: str | None = None
    """Held-out English preferences, in the form of align.preferences."""
    temperature: float = Field(0.6, gt=0)
    """Sampling temperature."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Nucleus sampling."""
    max_new_tokens: int = Field(2048, ge=1)
    """Tokens after which a response is cut off."""
    models: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-zA-Z][\w.-]*$")], str], Field(json_schema_extra=OPERATIONAL)
    ] = {}
    """Further models that are evaluated and judged as the iterations' are, by a name: Hugging Face folders or hub
    names, each with its own tokenizer and chat template."""


class JudgeConfig(_Section):
    """Stage 6: a judge model compares held-out answers with a baseline's."""

    backend: Literal["openai", "transformers"] = "openai"
    """Where the judge is: behind an OpenAI-compatible endpoint, or in the Ray workers as a model folder."""
    model: str | None = None
    """The judge: the endpoint's name of it, or a Hugging Face folder or hub name. Without it nothing is judged."""
    base_url: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """The endpoint, up to and with /v1; OPENAI_BASE_URL or OpenAI's own by default."""
    serve: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """A command that serves the judge on this node for as long as it is asked, instead of base_url, with {model} and
    {port} filled in: vllm serve {model} --host 127.0.0.1 --port {port}."""
    api_key_variable: Annotated[str, Field(json_schema_extra=OPERATIONAL)] = "OPENAI_API_KEY"
    """The environment variable that holds the endpoint's key; for a server without keys it may hold anything."""
    baseline: Annotated[int, Field(ge=0)] | str = 0
    """What answers are compared with: those of an iteration (0 is the start) or of one of evaluate.models, or a folder
    of reference outputs in AlpacaEval's form, {lang}.json with instruction, output and generator in every row."""
    both_orders: bool = True
    """Ask twice, with the answers in both orders, and take the mean; else once, in an order drawn by the seed."""
    preference: Literal["weighted", "choice"] = "weighted"
    """weighted reads the probabilities of the two possible verdicts (logprobs), choice the verdict itself."""
    template: str | None = None
    """A file with what the judge is asked, instead of xlr's own words, with {instruction}, {output_1}, {output_2} and
    {language}, for a verdict m (output_1 is better) or M: plain text, or with AlpacaEval's <|im_start|> marks."""
    temperature: float | None = Field(0.0, ge=0)
    """Sampling temperature of an endpoint's verdicts; null sends none."""
    max_tokens: int | None = Field(default_factory=lambda given: 16 if given.get("preference") == "choice" else 1, ge=1)
    """Tokens of an endpoint's verdict: 1 where it is weighted, 16 where it is a choice; null sends no limit."""
    top_logprobs: int = Field(20, ge=2)
    """How many probabilities an endpoint is asked for; some allow no more than 5."""
    extra_body: dict[str, Any] = {}
    """What requests hold beside OpenAI's keys, e.g. {chat_template_kwargs: {enable_thinking: false}}."""
    difficulty: str | None = None
    """AlpacaEval's df_gamed.csv, a file or the hub's dataset tatsu-lab/alpaca_eval that has it, for
    length_controlled_v1 instead of length_controlled_minimal."""
    concurrency: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 16
    """Requests to an endpoint at once."""
    timeout: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 120
    """Seconds that a request may take before it is tried again."""
    max_retries: Annotated[int, Field(ge=0, json_schema_extra=OPERATIONAL)] = 8
    """How often a request is tried again, with longer and longer pauses or those that the endpoint asks for."""
    input_price: Annotated[float | None, Field(ge=0, json_schema_extra=OPERATIONAL)] = None
    """Price of a million tokens of questions, in any currency."""
    output_price: Annotated[float | None, Field(ge=0, json_schema_extra=OPERATIONAL)] = None
    """Price of a million tokens of verdicts."""
    budget: Annotated[float | None, Field(gt=0, json_schema_extra=OPERATIONAL)] = None
    """The most that all verdicts in the cache may cost together; of jobs that judge at the same time, each knows what
    was spent before it began and what it spends itself."""
    cache: Annotated[str | None, Field(json_schema_extra=OPERATIONAL)] = None
    """Folder of an endpoint's verdicts by content, which runs may share; RUN/verdicts by default."""

    @model_validator(mode="after")
    def _consistent(self) -> "JudgeConfig":
        if (self.input_price is None) != (self.output_price is None):
            raise UserError("judge.input_price and judge.output_price: set both or neither")
        if self.serve is not None and "{port}" not in self.serve:
            raise UserError("judge.serve: has no {port}; the server must listen where it is told to")
        if self.budget is not None and self.input_price is None:
            raise UserError("judge.budget: needs judge.input_price and judge.output_price, in the same currency")
        return self


class RayConfig(_Section):
    """The actors that sample and score; nothing here changes a result."""

    actors: Annotated[int | None, Field(ge=1, json_schema_extra=OPERATIONAL)] = None
    """How many; by default one a GPU, or what the CPUs allow."""
    cpus_per_actor: Annotated[int | None, Field(ge=1, json_schema_extra=OPERATIONAL)] = None
    """Threads of an actor; by default all cores on a CPU machine, 4 beside a GPU."""
    gpus_per_actor: Annotated[float | None, Field(ge=0, json_schema_extra=OPERATIONAL)] = None
    """GPUs of an actor; by default 1 where there are GPUs."""
    task_minutes: Annotated[float, Field(gt=0, json_schema_extra=OPERATIONAL)] = 120
    """Minutes that a worker may take for one batch; after that it hangs, is ended, and another does it."""
    one_model_at_a_time: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    """Score with the policy first and with the reference after it, where a GPU does not hold both."""
    dashboard: Annotated[bool, Field(json_schema_extra=OPERATIONAL)] = False
    """Start Ray's dashboard, on the same address."""


class JobConfig(_Section):
    """What a Slurm job asks for; what is not set is left to the cluster."""

    nodes: int | None = Field(None, ge=1)
    """How many nodes."""
    gpus: int | Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")] | None = None
    """GPUs of a node: a number, or type and number as in a100:8."""
    cpus: int | None = Field(None, ge=1)
    """CPUs of a node."""
    tasks: int | None = Field(None, ge=1)
    """Training processes of a node; one a GPU by default, one on CPUs."""
    memory: str | None = None
    """Memory of a node, as sbatch --mem takes it; 0 is all of it."""
    time: str | None = None
    """Time limit, as sbatch --time takes it (quoted: YAML reads 1:30 as a number); a job that reaches it goes on in a
    new run of its own."""
    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nice: int | None = None
    """How far the job stands back behind others of yours."""
    options: tuple[str, ...] | None = None
    """Further sbatch options, for example --exclusive or --signal=USR1@600."""


class JobKindConfig(JobConfig):
    """A kind of job: its stages, and what differs from the other kinds."""

    stages: tuple[Literal["generate", "score", "pair", "reference", "train", "evaluate", "judge"], ...] | None = None
    """The stages that one job runs, of one iteration; align goes with train. Every stage needs a kind of job."""


class SlurmConfig(JobConfig):
    """How `xlr submit` makes jobs of the stages; nothing here changes a result.

    The site profile (~/.config/xlr/site.yaml) has the same keys; what a run sets goes before it.
    """

    jobs: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], JobKindConfig] = {}
    """Kinds of jobs by name: annotate (generate, score, pair, reference), train and evaluate (evaluate, judge) by
    default. A kind that names stages takes them from the others; one that is left without any goes."""
    setup: tuple[str, ...] | None = None
    """Shell lines before anything else in each job: module load, source .../activate."""
    python: str | None = None
    """The interpreter on the nodes; by default the one that runs `xlr submit`."""
    container: str | None = None
    """What commands are put behind, for example `apptainer exec --nv image.sif`; python is then one inside."""
    srun: tuple[str, ...] | None = None
    """Further srun options, for example --container-image=image.sqsh where pyxis is installed."""
    max_restarts: int | None = Field(None, ge=0)
    """How often a job may start again after its time limit, a preemption or a lost node; 20 by default."""


class Config(_Section):
    """One run: everything that decides its result."""

    run_dir: Annotated[str, Field(json_schema_extra=OPERATIONAL)]
    """Where the run's artefacts go."""
    seed: int = Field(42, ge=0)
    """Seed of sampling and data order."""
    iterations: Annotated[int, Field(ge=1, json_schema_extra=OPERATIONAL)] = 2
    """How many times generate, score, pair and train are repeated; may be raised later."""
    languages: tuple[str, ...] = Field(min_length=1)
    """ISO 639-1 codes, English among them if it is to be trained on."""
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
    slurm: Annotated[SlurmConfig, Field(json_schema_extra=OPERATIONAL)] = SlurmConfig()

    @property
    def evaluated_languages(self) -> tuple[str, ...]:
        """The languages that held-out answers are in."""
        return self.evaluate.languages or self.languages

    @model_validator(mode="after")
    def _consistent(self) -> "Config":
        from xlr import languages

        for key, codes in (("languages", self.languages), ("evaluate.languages", self.evaluated_languages)):
            for code in codes:
                try:
                    languages.name(code)
                except UserError as error:
                    raise UserError(f"{key}: {error}") from error
            if len(set(codes)) != len(codes):
                raise UserError(f"{key}: a code stands twice in {list(codes)}; remove one")
        if self.model.aligned is None and self.align.preferences is None:
            raise UserError(
                "model.aligned is not set: name the English-aligned model, or set align.preferences to English "
                "preference pairs from which the align stage makes one"
            )
        if self.generate.tensor_parallel_size > 1 and self.generate.backend != "vllm":
            raise UserError(
                f"generate.tensor_parallel_size: {self.generate.backend} samples on one GPU; set generate.backend to "
                "vllm, or leave tensor_parallel_size out"
            )
        baseline = self.judge.baseline
        if self.judge.model and self.evaluate.prompts is None:
            raise UserError("judge.model: there are no answers to judge without evaluate.prompts; set them")
        if isinstance(baseline, int) and baseline > self.iterations:
            raise UserError(f"judge.baseline: there is no iteration {baseline}, the last is {self.iterations}")
        if self.score.reward == "translate" and set(self.languages) == {"en"}:
            raise UserError("score.reward: translate leaves English out, and languages has nothing else")
        return self


def load(source: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a configuration.

    Args:
        source: a YAML file, or a run directory (its `config.yaml`).
        overrides: `section.key=value` strings, values in YAML.

    Raises:
        UserError: naming the file and the key.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        what = "no such run directory or file" if not path.parent.is_dir() or path.name != "config.yaml" else "missing"
        raise UserError(f"{path}: {what}; start one with `xlr init NAME --recipe quickstart`")
    tree = _read(path)
    for override in overrides or []:
        _override(tree, override)
    tree.setdefault("run_dir", f"runs/{path.stem}")
    return _absolute(_validated(Config, tree, path))


def load_site(path: Path) -> SlurmConfig:
    """Read a site profile.

    Raises:
        UserError: naming the file and the key.
    """
    return _validated(SlurmConfig, _read(path), path)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: holds no keys; start from `xlr init NAME --recipe quickstart`")
    return tree


def _validated(section: type[Section], tree: dict[str, Any], path: Path) -> Section:
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{path}: " + "; ".join(_explain(problem, section) for problem in error.errors())) from error


def _override(tree: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{override!r}: an override is written section.key=value, for example train.beta=0.2")
    *sections, key = dotted.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"{override!r}: {section} is a value, not a section")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not valid YAML") from error
    tree[key] = value


def _explain(problem: Any, section: Any) -> str:
    """One pydantic problem as a sentence that names the dotted key and, for an unknown one, the nearest."""
    keys = [str(part) for part in problem["loc"]]
    dotted = ".".join(keys)
    if problem["type"] != "extra_forbidden":
        given = "" if problem["type"] == "missing" else f" (it is {problem['input']!r})"
        return f"{dotted or 'the file'}: {problem['msg'][0].lower()}{problem['msg'][1:]}{given}"
    for key in keys[:-1]:
        if key in section.model_fields:  # else the name of an entry, as in slurm.jobs.train
            section = _section_type(section.model_fields[key].annotation)
    valid = list(section.model_fields)
    close = difflib.get_close_matches(keys[-1], valid, 1)
    nearest = f"did you mean {close[0]}? " if close else ""
    return f"{dotted}: unknown key; {nearest}valid here: {', '.join(valid)}"


def _section_type(annotation: Any) -> Any:
    options = getattr(annotation, "__args__", (annotation,))
    return next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))


def _absolute(config: Config) -> Config:
    """Every path absolute, so that the resolved configuration works from any folder."""

    def place(path: str | None) -> str | None:
        return path and str(Path(path.replace("{recipes}", str(RECIPES))).expanduser().absolute())

    def hub(name: str | None) -> str | None:
        """A hub name stays as it is; what exists, or is written as a path, is one."""
        if name is None or not (Path(name).exists() or name.startswith((".", "/", "~", "{"))):
            return name
        return place(name)

    def ds_config(name: str) -> str:
        return str(place(name)) if name.endswith(".json") else name

    def trained(section: Any, **paths: Any) -> Any:
        names = {key: ds_config(getattr(section, key)) for key in ("ds_config", "reference_ds_config")}
        return section.model_copy(update={**names, **paths})

    def prompts(section: PromptsConfig) -> PromptsConfig:
        return section.model_copy(update={"path": hub(section.path)})

    held_out, baseline = config.evaluate.prompts, config.judge.baseline
    if isinstance(baseline, str) and baseline not in config.evaluate.models:
        baseline = str(place(baseline))
    return config.model_copy(
        update={
            "run_dir": place(config.run_dir),
            "model": config.model.model_copy(
                update={"initial": hub(config.model.initial), "aligned": hub(config.model.aligned)}
            ),
            "prompts": prompts(config.prompts),
            "align": trained(config.align, preferences=place(config.align.preferences)),
            "train": trained(config.train),
            "evaluate": config.evaluate.model_copy(
                update={
                    "prompts": held_out and prompts(held_out),
                    "preferences": place(config.evaluate.preferences),
                    "models": {name: hub(model) for name, model in config.evaluate.models.items()},
                }
            ),
            "judge": config.judge.model_copy(
                update={
                    "model": hub(config.judge.model) if config.judge.backend == "transformers" else config.judge.model,
                    "baseline": baseline,
                    "difficulty": hub(config.judge.difficulty),
                    **{key: place(getattr(config.judge, key)) for key in ("template", "cache")},
                }
            ),
        }
    )


def dump(config: Config) -> str:
    """The configuration as YAML, every default spelled out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def settings(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    """What of a section, or of a whole configuration, decides a result, flat: `{"train.beta": 0.1, ...}`."""
    flat: dict[str, Any] = {}
    for key, field in type(section).model_fields.items():
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("operational"):
            continue
        value, dotted = getattr(section, key), f"{prefix}.{key}" if prefix else key
        if isinstance(value, BaseModel):
            flat |= settings(value, dotted)
        else:
            flat[dotted] = value
    return flat
