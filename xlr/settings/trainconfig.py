"""Settings of training: of an iteration, and of the model that the method starts from."""

from typing import Annotated, Literal

from pydantic import Field

from xlr.settings.dataconfig import PreferencesConfig
from xlr.settings.schema import OPERATIONAL, ByIteration, Ignored, Later, Location, Section

Tracker = Literal["tensorboard", "wandb", "mlflow"]
LossType = Literal[
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "discopop",
    "apo_zero",
    "apo_down",
    "sppo_hard",
    "nca_pair",
    "bco_pair",
    "kto",
    "simpo",
]


class TrainConfig(Section):
    """Stage 4: full fine-tuning with a preference loss, by default DPO, and NLL."""

    beta: ByIteration[Annotated[float, Field(ge=1e-6, le=1000)]] = 0.1
    """Inverse temperature of the preference loss."""
    loss_type: LossType | Annotated[tuple[LossType, ...], Field(min_length=1)] = "sigmoid"
    """Preference loss, by TRL's names, or a list of losses that are added up. The page Training has their formulas."""
    loss_weights: tuple[Annotated[float, Field(ge=0, le=1000)], ...] | None = None
    """Weight of each loss in loss_type, in the same order. null weighs each with 1."""
    label_smoothing: Annotated[
        float,
        Field(ge=0, lt=0.5),
        Ignored("the other losses have no label smoothing", unless=("loss_type", "sigmoid", "robust", "exo_pair")),
    ] = 0.0
    """Assumed probability that a preference label is flipped. exo_pair needs more than 0; its paper takes 0.001."""
    simpo_gamma: Annotated[
        float,
        Field(ge=0, le=1000),
        Ignored("only SimPO has a target margin", unless=("loss_type", "simpo")),
        Later.ADDED,
    ] = 0.5
    """Margin of the reward that SimPO aims at (gamma)."""
    discopop_tau: Annotated[
        float,
        Field(ge=1e-3, le=1),
        Ignored("only DiscoPOP has this temperature", unless=("loss_type", "discopop")),
        Later.ADDED,
    ] = 0.05
    """Temperature at which DiscoPOP changes from the logistic to the exponential loss."""
    nll_weight: ByIteration[Annotated[float, Field(ge=0, le=1000)]] = 1.0
    """Weight of the chosen response's mean negative log-likelihood per token, which is added to the preference loss."""
    router_aux_loss_coef: Annotated[Annotated[float, Field(ge=0, le=1000)] | Literal["auto"], Later.ADDED] = "auto"
    """Coefficient of the load-balancing loss of a mixture of experts, which is added to DPO and NLL. auto takes the
    model's own from config.json if output_router_logits is true there, as TRL does. 0 trains without this loss."""
    reference: ByIteration[Literal["start", "initial"]] = "start"
    """DPO reference: the model that the iteration starts from, or pi_I."""
    reference_mode: Literal["frozen", "cached"] = "frozen"
    """frozen keeps the reference in memory beside the policy. cached has the Ray workers compute its log-probabilities
    of all pairs before training, which saves its memory and time in training. SimPO alone has no reference: neither
    happens."""
    learning_rate: ByIteration[Annotated[float, Field(ge=1e-20, le=1)]] = 5e-7
    """Peak learning rate."""
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    """Learning-rate schedule, by the names of transformers. constant has no warm-up."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises to its peak."""
    weight_decay: float = Field(0.0, ge=0, le=100)
    """Decoupled weight decay of AdamW."""
    adam_beta1: float = Field(0.9, ge=0, le=0.999999)
    """Decay rate of AdamW's first moment."""
    adam_beta2: float = Field(0.999, ge=0, le=0.999999)
    """Decay rate of AdamW's second moment."""
    adam_epsilon: float = Field(1e-8, ge=1e-20, le=1)
    """AdamW's epsilon."""
    max_grad_norm: float = Field(1.0, ge=0, le=1e9)
    """Maximum gradient norm; larger gradients are clipped to it. 0 turns clipping off."""
    replay: Annotated[ByIteration[Annotated[float, Field(ge=0, le=1)]], Later.ADDED] = 0.0
    """Share of the pairs of each earlier iteration, in each language, that an iteration trains on beside its own. The
    authors' best second iterations replayed all pairs of the first."""
    replay_english: Annotated[ByIteration[Annotated[float, Field(ge=0, le=1)]], Later.ADDED] = 0.0
    """Share of the English preferences of align.preferences that an iteration trains on beside its own pairs, so that
    the model does not forget them."""
    num_train_epochs: ByIteration[Annotated[int, Field(ge=1, le=10_000)]] = 1
    """Passes over the pairs."""
    max_steps: int | None = Field(None, ge=1, le=1_000_000_000)
    """Maximum number of optimizer steps; the learning-rate schedule ends there too. null sets no limit."""
    global_batch_size: int = Field(32, ge=1, le=1_000_000)
    """Pairs per optimizer step, over all ranks."""
    micro_batch_tokens: Annotated[int, Field(ge=1, le=100_000_000)] | Literal["auto"] = 8192
    """Tokens that a rank computes at once. Lower it if a GPU runs out of memory: the loss changes only by rounding.
    auto takes as many as fit the memory by `xlr plan`'s formula, up to 16384; the run keeps the number."""
    max_length: int = Field(4096, ge=2, le=10_000_000)
    """Maximum length of prompt plus response, in tokens. Pairs with a longer one are left out, counted and reported."""
    gradient_checkpointing: bool | Literal["selective"] = False
    """Recompute activations in the backward pass instead of keeping them. true recomputes whole layers. selective keeps
    the results of matrix products and attention: it saves half as much memory and costs little time."""
    ds_config: Annotated[str, Location.DS_CONFIG] = "zero3"
    """DeepSpeed JSON of the policy: your own file, or the name of one in ds_configs/."""
    reference_ds_config: Annotated[str, Location.DS_CONFIG] = "reference"
    """DeepSpeed JSON of the reference; used with reference_mode frozen."""
    processes: Annotated[int | None, Field(ge=1, le=1024), OPERATIONAL] = None
    """Training processes that xlr starts on this machine. null starts one per GPU, or one on CPUs."""
    save_steps: Annotated[int, Field(ge=0, le=1_000_000_000), OPERATIONAL] = 50
    """Steps between checkpoints. 0 writes one only on SIGTERM or SIGUSR1, or after save_minutes."""
    save_minutes: Annotated[float, Field(ge=0, le=1_000_000), OPERATIONAL] = 30
    """Longest time between checkpoints, in minutes. 0 sets no such limit."""
    save_total_limit: Annotated[int, Field(ge=1, le=1_000_000), OPERATIONAL] = 1
    """Number of checkpoints to keep. The oldest is deleted once a new one is complete."""
    eval_pairs: int = Field(0, ge=0, le=1_000_000_000)
    """Pairs per language that are held out of training and evaluated instead."""
    eval_steps: Annotated[int, Field(ge=1, le=1_000_000_000), OPERATIONAL] = 50
    """Steps between evaluations of the held-out pairs."""
    report_to: Annotated[tuple[Tracker, ...], OPERATIONAL] = ("tensorboard",)
    """Experiment trackers that get the metrics, besides metrics.jsonl. Each reads its own environment variables."""

    @property
    def loss_types(self) -> tuple[LossType, ...]:
        """The names of the preference losses."""
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    @property
    def losses(self) -> list[tuple[LossType, float]]:
        """The preference losses with their weights."""
        return list(zip(self.loss_types, self.loss_weights or [1.0] * len(self.loss_types), strict=True))

    @property
    def tokens_at_once(self) -> int:
        """`micro_batch_tokens`, where a number has taken the place of auto."""
        assert self.micro_batch_tokens != "auto"
        return self.micro_batch_tokens

    @property
    def used_reference(self) -> Literal["frozen", "cached"] | None:
        """`reference_mode`, or None if no loss has a reference."""
        return None if set(self.loss_types) == {"simpo"} else self.reference_mode


class AlignConfig(TrainConfig):
    """Stage 0: train pi^0 from pi_I on English preferences, with the same trainer."""

    reference: Annotated[
        Literal["start", "initial"],
        Ignored("the align stage starts from model.initial, so both values name the same model"),
    ] = "start"
    """DPO reference: always model.initial, from which the align stage starts."""
    replay: Annotated[float, Field(ge=0, le=1), Ignored("the align stage has no earlier iterations"), Later.ADDED] = 0.0
    """Always 0."""
    replay_english: Annotated[
        float, Field(ge=0, le=1), Ignored("the align stage trains on all English preferences"), Later.ADDED
    ] = 0.0
    """Always 0."""
    preferences: Annotated[str | PreferencesConfig | None, Location.DATA] = None
    """English preferences with prompt, chosen and rejected, each a string or a list of messages: a file, a folder with
    such a file named en, or a dataset, saved or on the hub."""
