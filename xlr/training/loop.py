"""The DPO loop under ZeRO-3, the reference frozen beside the policy; one process is one rank.

Shapes: `B` pairs of a micro-batch; sequences stand chosen, rejected, chosen, rejected, ...
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xlr import progress
from xlr.cluster.preemption import Preempted, Request
from xlr.config import TrainConfig
from xlr.config import settings as flat_settings
from xlr.data.encoding import batch_shape
from xlr.errors import UserError
from xlr.maths.batching import Batch, micro_batches
from xlr.maths.losses import dpo_logits, ipo_loss, nll, sigmoid_loss
from xlr.model.weights import resolve_dtype
from xlr.model.worker import batch_logps
from xlr.records import Example
from xlr.run.artifact import Artifact, read_json, remove, write_json
from xlr.run.context import PROGRESS, Context
from xlr.training import engine, reference
from xlr.training.inputs import ALIGN, TrainingPair, hold_out, load_pairs, reference_model, section, start_model
from xlr.training.launcher import Ranks
from xlr.training.metrics import Metrics, peak_flops, peak_memory_gb
from xlr.training.model import artifact
from xlr.training.modelcard import model_card
from xlr.training.trackers import MetricsLog
from xlr.training.watch import Watch

# Pairs -> the reference's log-probabilities of chosen and rejected, `(B, 2)`.
ReferenceLogps = Callable[[Sequence[TrainingPair]], Tensor]

_CHECKPOINTS = "checkpoints"


def plan_steps(
    lengths: Sequence[int], rows: Sequence[int] | None, train: TrainConfig, seed: int, world_size: int
) -> list[list[list[Batch]]]:
    """Which pairs every rank computes when: `[step][micro-step][rank]` -> indices.

    The pairs of a step are a function of (seed, epoch, step) alone; only how they are cut into micro-batches
    depends on the world size. The last step of an epoch may hold fewer pairs.
    """
    steps = []
    for epoch in range(train.num_train_epochs):
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed * 1000 + epoch)).tolist()
        for start in range(0, len(order), train.global_batch_size):
            step = order[start : start + train.global_batch_size]
            own_rows = [rows[i] for i in step] if rows else None
            cut = micro_batches([lengths[i] for i in step], train.micro_batch_tokens, world_size, own_rows)
            steps.append([[[step[i] for i in batch] for batch in micro_step] for micro_step in cut])
    return steps[: train.max_steps]


def train(context: Context, iteration: int, ranks: Ranks) -> None:
    """Train as one rank; every rank calls this.

    Raises:
        UserError: a startup gate failed, with the remedy.
        FloatingPointError: a loss or gradient became NaN or infinite; names the pairs.
        Preempted: a signal asked for an end; a checkpoint holds what was done.
    """
    request = Request().listen()
    clock = progress.Clock()
    if iteration > ALIGN:
        context.require_model(iteration - 1)
    device = engine.init_distributed(ranks)
    on_gpus = ranks.world_size if device.type == "cuda" else 0
    clock.count_processors(ranks.world_size * (1 if on_gpus else torch.get_num_threads()), on_gpus)
    job = _Job.plan(context, iteration, ranks, device)
    # The folder's label says what the checkpoints belong to: settings and inputs of the model.
    checkpoints = job.target.parts(_CHECKPOINTS) if job.main else job.target.parts_folder(_CHECKPOINTS)
    checkpoint = engine.find_checkpoint(checkpoints)
    first = checkpoint.step if checkpoint else 0
    trainer = _open(job, checkpoint)
    name = f"{context.run.path.name} {job.title}"
    report_to = job.train.report_to if job.main else ()
    log = MetricsLog(job.target.folder.parent, report_to, name, job.flat_settings, first) if job.main else None
    watch = Watch()
    for row in log.rows if log else ():
        watch.see(row["step"], row, job.train.beta)
    last_metrics = _loop(job, trainer, log, watch, first, request, checkpoints)
    facts = {
        "steps": len(job.steps),
        "pairs": len(job.training_pairs),
        "held_out": len(job.held_out),
        "dropped": dict(job.dropped),
        "world_size": ranks.world_size,
        "warnings": watch.warnings,
    }
    _export(job, trainer, facts, last_metrics)
    if log:
        log.close()
        job.target.finish(len(job.training_pairs), facts, clock)
        remove(checkpoints)
    dist.barrier()
    engine.close_distributed()


@dataclass(frozen=True)
class _Job:
    """What is to be trained, the same on every rank but for `ranks`."""

    context: Context
    iteration: int
    target: Artifact
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    training_pairs: list[TrainingPair]
    held_out: list[TrainingPair]
    dropped: Counter[str]
    steps: list[list[list[Batch]]]

    @classmethod
    def plan(cls, context: Context, iteration: int, ranks: Ranks, device: torch.device) -> "_Job":
        config, train = context.config, section(context, iteration)
        pairs, dropped = load_pairs(context, iteration)
        training_pairs, held_out = hold_out(pairs, train.eval_pairs, config.seed)
        costs = _costs(training_pairs, config.model.attn_implementation)
        steps = plan_steps(*costs, train, config.seed, ranks.world_size)
        dtype = resolve_dtype(config.model.dtype, device)
        target = artifact(context, iteration)
        return cls(context, iteration, target, ranks, device, dtype, training_pairs, held_out, dropped, steps)

    @property
    def train(self) -> TrainConfig:
        return section(self.context, self.iteration)

    @property
    def flat_settings(self) -> dict[str, Any]:
        return flat_settings(self.train, "align" if self.iteration == ALIGN else "train")

    @property
    def title(self) -> str:
        return "align" if self.iteration == ALIGN else f"train iteration {self.iteration}"

    @property
    def start(self) -> str:
        return start_model(self.context, self.iteration)

    @property
    def reference(self) -> str:
        return reference_model(self.context, self.iteration)

    @property
    def attention(self) -> str:
        return self.context.config.model.attn_implementation

    @property
    def main(self) -> bool:
        return self.ranks.rank == 0


def _open(job: _Job, checkpoint: engine.Checkpoint | None) -> "Trainer":
    """Policy and reference; a fresh start is held against what the scorer measured."""
    if job.train.reference_mode == "cached":
        pairs = [*job.training_pairs, *job.held_out]
        cached = reference.load(job.context, job.iteration, str(job.dtype), pairs)
        reference_logps = _cached_logps(cached, job.device)
    else:
        frozen = engine.open_reference(job.reference, job.train, job.dtype, job.attention)
        reference_logps = _frozen_logps(frozen, job.attention, job.device)
    policy = engine.open_policy(job.start, job.train, job.dtype, job.attention, len(job.steps), checkpoint)
    trainer = Trainer(
        job.train, policy, reference_logps, job.attention, job.device, job.ranks, job.training_pairs, job.held_out
    )
    if checkpoint is None:
        trainer.check_probes(_probes(job.context, job.iteration))
    return trainer


def _loop(
    job: _Job,
    trainer: "Trainer",
    log: MetricsLog | None,
    watch: Watch,
    first: int,
    request: Request,
    checkpoints: Path,
) -> dict[str, float]:
    """Every step from `first` on; returns the metrics of the last.

    Raises:
        Preempted: a rank was asked to end; a checkpoint was written.
    """
    train, total = job.train, len(job.steps)
    values: dict[str, float] = dict(log.rows[-1]) if log and log.rows else {}
    saved_at = time.monotonic()
    with _shown(job, first, checkpoints) as shown:
        for number in range(first, total):
            done, last = number + 1, number + 1 == total
            values = trainer.step(job.steps[number])
            if number == 0:
                _require_ln2(values, train, job.start == job.reference, job.dtype)
            if job.held_out and (last or done % train.eval_steps == 0):
                values |= trainer.evaluate()
            late = train.save_minutes > 0 and time.monotonic() - saved_at > 60 * train.save_minutes
            stop, late, values["perf/peak_memory_gb"] = _agree(
                request.received, late, peak_memory_gb(job.device), job.device
            )
            if log:
                log.write(done, {"epoch": done / total * train.num_train_epochs, **values})
            for warning in watch.see(done, values, train.beta):
                if job.main:
                    progress.console.print(f"  warning: {warning}")
            if shown:
                note = f"loss {values['loss']:.3f}, accuracy {values['rewards/accuracies']:.2f}"
                shown.advance({"": 1}, int(values["num_tokens"]), note)
            save = late or (train.save_steps > 0 and done % train.save_steps == 0)
            if stop or (save and not last):
                engine.save_checkpoint(trainer.policy, checkpoints, done, train.save_total_limit)
                saved_at = time.monotonic()
            if stop:
                raise Preempted(f"{job.title}: ended on request after step {done} of {total}, which is saved")
    return values


def _shown(job: _Job, first: int, checkpoints: Path) -> AbstractContextManager[progress.Step | None]:
    """The progress of the steps, which rank 0 shows."""
    if not job.main:
        return nullcontext()
    keep = partial(write_json, checkpoints / PROGRESS)
    return progress.step(job.title, {"": len(job.steps)}, "steps", {"": first}, keep)


def _export(job: _Job, trainer: "Trainer", facts: Mapping[str, Any], last_metrics: Mapping[str, float]) -> None:
    """Write the model's folder, open it again, and hold its log-probabilities against the trained weights'."""
    config = job.context.config
    card = model_card(
        job.iteration,
        (job.iteration > ALIGN and config.model.aligned) or config.model.initial,
        sorted({pair.lang for pair in job.training_pairs}),
        job.flat_settings,
        {key: facts[key] for key in ("steps", "pairs", "held_out")},
        last_metrics,
    )
    engine.export(trainer.policy, job.start, job.target.folder, card)
    del trainer.reference_logps  # and with it a frozen reference: the exported weights take its place in memory
    require_same_model(trainer, job.target.folder, job.dtype)


def _costs(pairs: Sequence[TrainingPair], attention: str) -> tuple[list[int], list[int] | None]:
    return batch_shape([pair.example for pair in pairs], attention)


def _frozen_logps(frozen: Any, attention: str, device: torch.device) -> ReferenceLogps:
    """Log-probabilities from the frozen engine; a collective, as every use of its weights."""

    def logps(pairs: Sequence[TrainingPair]) -> Tensor:
        with torch.no_grad():
            return batch_logps(frozen, [pair.example for pair in pairs], attention, device).view(-1, 2)

    return logps


def _cached_logps(cached: Mapping[TrainingPair, tuple[float, float]], device: torch.device) -> ReferenceLogps:
    """Log-probabilities computed before training."""
    return lambda pairs: torch.tensor([cached[pair] for pair in pairs], device=device)


def _agree(stop: bool, save: bool, peak_gb: float, device: torch.device) -> tuple[bool, bool, float]:
    """Whether any rank was asked to end, whether any wants to save, and the highest peak: one collective."""
    state = torch.tensor([stop, save, peak_gb], dtype=torch.float64, device=device)
    dist.all_reduce(state, op=dist.ReduceOp.MAX)
    any_stop, any_save, highest = state.tolist()
    return bool(any_stop), bool(any_save), highest


def require_same_model(trainer: "Trainer", folder: Path, dtype: torch.dtype) -> None:
    """Open a model's folder and hold its log-probabilities of one pair against the trained model's.

    Raises:
        RuntimeError: they differ; the folder does not hold what was trained.
    """
    exported = engine.open_reference(str(folder), trainer.train, dtype, trainer.attn_implementation)
    example = trainer.pairs[0].example
    trainer.policy.eval()
    with torch.no_grad():
        trained_S = batch_logps(trainer.policy, [example], trainer.attn_implementation, trainer.device)
        exported_S = batch_logps(exported, [example], trainer.attn_implementation, trainer.device)
    if not torch.allclose(trained_S, exported_S, rtol=1e-5, atol=1e-4):
        raise RuntimeError(
            f"{folder}: the exported model gives {exported_S.tolist()} nats where the trained one gives "
            f"{trained_S.tolist()}"
        )


def _probes(context: Context, iteration: int) -> list[dict[str, Any]]:
    """Sequences that the scorer measured under this iteration's starting model."""
    file = context.run.iteration(iteration) / "scores" / "probes.json"
    return read_json(file) if iteration != ALIGN and file.is_file() else []


def _require_ln2(values: dict[str, float], train: TrainConfig, same_models: bool, dtype: torch.dtype) -> None:
    """At step 0 the policy equals the reference, so the sigmoid loss is ln 2 whatever the data.

    Raises:
        UserError: it is not.
    """
    if not same_models or train.loss_type != "sigmoid":
        return
    preference_loss = values["loss"] - train.nll_weight * values["nll_loss"]
    # Log-probabilities cached by the scorers come from other batches, which bfloat16 notices.
    allowed = 1e-3 if dtype == torch.float32 or train.reference_mode == "frozen" else 2e-2
    if abs(preference_loss - math.log(2)) > allowed:
        raise UserError(
            f"the DPO loss at step 0 is {preference_loss:.6f}, not ln 2 = {math.log(2):.6f}, although the policy "
            "equals the reference: the two compute differently; use the same precision and attn_implementation, and "
            "make a cached reference again"
        )


class Trainer:
    """One rank's half of the loop: micro-batches in, metrics out."""

    def __init__(
        self,
        train: TrainConfig,
        policy: Any,
        reference_logps: ReferenceLogps,
        attn_implementation: str,
        device: torch.device,
        ranks: Ranks,
        training_pairs: Sequence[TrainingPair],
        held_out: Sequence[TrainingPair] = (),
    ):
        self.train = train
        self.policy = policy
        self.reference_logps = reference_logps
        self.attn_implementation = attn_implementation
        self.device = device
        self.ranks = ranks
        self.pairs = training_pairs
        self.held_out = held_out
        self.languages = sorted({pair.lang for pair in training_pairs})
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in policy.module.parameters())
        # 2 FLOP a parameter and token forward, twice that backward; the reference's forward pass where there is one.
        self.flops_per_token = parameters * (8 if train.reference_mode == "frozen" else 6)
        self.peak_flops = peak_flops(device) * ranks.world_size

    def _logps(self, examples: Sequence[Example]) -> Tensor:
        return batch_logps(self.policy, examples, self.attn_implementation, self.device)

    def check_probes(self, probes: Sequence[dict[str, Any]]) -> None:
        """Scorer and trainer must agree on what a sequence's log-probability is.

        Raises:
            UserError: they do not.
        """
        if not probes:
            return
        examples = [Example(tuple(probe["prompt"]), (tuple(probe["response"]),)) for probe in probes]
        with torch.no_grad():
            ours_S = self._logps(examples).cpu()
        theirs_S = torch.tensor([probe["logp_policy"] for probe in probes])
        exact = next(self.policy.module.parameters()).dtype == torch.float32
        allowed_S = (1e-4 * theirs_S.abs() + 1e-3) if exact else (2e-2 * theirs_S.abs() + 0.5)
        if not ((ours_S - theirs_S).abs() <= allowed_S).all():
            raise UserError(
                f"trainer and scorer disagree on log-probabilities, {ours_S.tolist()} against {theirs_S.tolist()}: the "
                "model or the chat template changed since the scores were made; make them again"
            )

    def step(self, micro_steps: Sequence[Sequence[Batch]]) -> dict[str, float]:
        """One optimizer step over a global batch, the same on every rank.

        One collective of ours: the metrics' sum before the optimizer step, which is also where the ranks wait.

        Raises:
            FloatingPointError: a loss or the gradient is not finite; on every rank, and before the weights change.
        """
        begun = time.monotonic()
        global_pairs = sum(len(batch) for micro_step in micro_steps for batch in micro_step)
        metrics = Metrics(self.languages, self.device)
        seen: list[tuple[list[TrainingPair], Tensor]] = []
        with engine.one_reduction(self.policy):
            for number, micro_step in enumerate(micro_steps):
                self.policy.set_gradient_accumulation_boundary(number == len(micro_steps) - 1)
                batch = [self.pairs[i] for i in micro_step[self.ranks.rank]]
                losses_B = self._losses(batch, metrics)
                seen.append((batch, losses_B.detach()))
                # DeepSpeed averages gradients over ranks; the mean is over the pairs of the global batch.
                self.policy.backward(losses_B.sum() * self.ranks.world_size / global_pairs, scale_wrt_gas=False)
        values = metrics.reduce()
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss is {values['loss']} for {_names(seen, odd=True)}")
        learning_rate = self.policy.get_lr()[0]
        self.policy.set_gradient_accumulation_boundary(True)
        self.policy.step()
        if self.policy.optimizer.overflow:  # DeepSpeed left the weights as they were
            raise FloatingPointError(f"the gradient is not finite at the step with {_names(seen, odd=False)}")
        seconds = time.monotonic() - begun
        return values | {
            "learning_rate": learning_rate,
            "grad_norm": float(self.policy.get_global_grad_norm() or 0.0),
            "perf/tokens_per_second": values["num_tokens"] / seconds,
            "perf/mfu": self.flops_per_token * values["num_tokens"] / seconds / self.peak_flops,
        }

    def evaluate(self) -> dict[str, float]:
        """The metrics of the held-out pairs, `eval_` before their names."""
        lengths, rows = _costs(self.held_out, self.attn_implementation)
        metrics = Metrics(self.languages, self.device)
        self.policy.eval()
        with torch.no_grad():
            for micro_step in micro_batches(lengths, self.train.micro_batch_tokens, self.ranks.world_size, rows):
                self._losses([self.held_out[i] for i in micro_step[self.ranks.rank]], metrics)
        self.policy.train()
        return {f"eval_{name}": value for name, value in metrics.reduce().items() if name != "num_tokens"}

    def _losses(self, batch: Sequence[TrainingPair], metrics: Metrics) -> Tensor:
        """The loss of each pair of a micro-batch, `(B,)`; its metrics are added to `metrics`."""
        # A rank without pairs computes another's with weight 0: ZeRO's collectives need every rank.
        pairs = batch or self.pairs[:1]
        examples = [pair.example for pair in pairs]
        reference_chosen_logps_B, reference_rejected_logps_B = self.reference_logps(pairs).T
        chosen_logps_B, rejected_logps_B = self._logps(examples).view(-1, 2).T
        lengths_B2 = torch.tensor([list(map(len, e.responses)) for e in examples], device=self.device)
        policy_losses_B = pair_losses(
            self.train,
            chosen_logps_B,
            rejected_logps_B,
            reference_chosen_logps_B,
            reference_rejected_logps_B,
            lengths_B2,
        )
        nll_B = nll(chosen_logps_B, lengths_B2[:, 0])
        losses_B = policy_losses_B + self.train.nll_weight * nll_B
        if not batch:
            return 0.0 * losses_B
        chosen_rewards_B = self.train.beta * (chosen_logps_B - reference_chosen_logps_B).detach()
        rejected_rewards_B = self.train.beta * (rejected_logps_B - reference_rejected_logps_B).detach()
        metrics.add(
            [pair.lang for pair in batch],
            {
                "loss": losses_B.detach(),
                "nll_loss": nll_B.detach(),
                "rewards/chosen": chosen_rewards_B,
                "rewards/rejected": rejected_rewards_B,
                "rewards/margins": chosen_rewards_B - rejected_rewards_B,
                "rewards/accuracies": (chosen_rewards_B > rejected_rewards_B).float(),
                "logps/chosen": chosen_logps_B.detach(),
                "logps/rejected": rejected_logps_B.detach(),
                # Estimates KL(reference || policy) of a sequence: the responses are the start model's own.
                "kl": -(chosen_rewards_B + rejected_rewards_B) / (2 * self.train.beta),
            },
            sum(example.num_tokens for example in examples),
        )
        return losses_B


def _names(seen: Sequence[tuple[Sequence[TrainingPair], Tensor]], odd: bool) -> str:
    """The pairs of a step on all ranks, or only the odd ones, whose loss is not finite: a collective."""
    own = [
        f"{pair.lang} {pair.id}"
        for pairs, losses_B in seen
        for pair, loss in zip(pairs, losses_B.tolist(), strict=False)  # a rank without pairs computes another's
        if not odd or not math.isfinite(loss)
    ]
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, own)
    names = ", ".join(name for names in found for name in names)
    return f"the pairs {names}; nothing was changed by this step, and the last checkpoint is good"


def pair_losses(
    train: TrainConfig,
    chosen_logps_B: Tensor,
    rejected_logps_B: Tensor,
    reference_chosen_logps_B: Tensor,
    reference_rejected_logps_B: Tensor,
    lengths_B2: Tensor,
) -> Tensor:
    """The configured preference loss of each pair.

    Args:
        lengths_B2: tokens of chosen and rejected; IPO averages log-probabilities over them.

    Returns:
        `(B,)`.
    """
    if train.loss_type == "sigmoid":
        logits_B = dpo_logits(chosen_logps_B, rejected_logps_B, reference_chosen_logps_B, reference_rejected_logps_B)
        return sigmoid_loss(logits_B, train.beta, train.label_smoothing)
    chosen_B, rejected_B = lengths_B2.T
    logits_B = dpo_logits(
        chosen_logps_B / chosen_B,
        rejected_logps_B / rejected_B,
        reference_chosen_logps_B / chosen_B,
        reference_rejected_logps_B / rejected_B,
    )
    return ipo_loss(logits_B, train.beta)
