"""The DPO loop under ZeRO-3, the reference frozen beside the policy; one process is one rank.

Shapes: `B` pairs of a micro-batch; sequences stand chosen, rejected, chosen, rejected, ...
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xlr import engine, progress, reference
from xlr.batching import Batch, micro_batches
from xlr.config import TrainConfig
from xlr.config import settings as flat_settings
from xlr.encoding import Example, batch_shape
from xlr.errors import UserError
from xlr.launch import Ranks
from xlr.losses import dpo_logits, ipo_loss, nll, sigmoid_loss
from xlr.metrics import Metrics, peak_flops, peak_memory_gb
from xlr.modelcard import model_card
from xlr.models import resolve_dtype
from xlr.preemption import Preempted, Request
from xlr.stage import Context
from xlr.store import read_json, remove
from xlr.trackers import MetricsLog
from xlr.training import artifact
from xlr.trainingpairs import ALIGN, TrainingPair, hold_out, load_pairs, reference_model, section, start_model
from xlr.watch import Watch
from xlr.worker import batch_logps

# Pairs -> the reference's log-probabilities of chosen and rejected, `(B, 2)`.
ReferenceLogps = Callable[[Sequence[TrainingPair]], Tensor]


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
    started = time.time()
    config, settings = context.config, section(context, iteration)
    if iteration > ALIGN:
        context.require_model(iteration - 1)
    start, reference_name = start_model(context, iteration), reference_model(context, iteration)
    target = artifact(context, iteration)
    main = ranks.rank == 0
    all_pairs, dropped = load_pairs(context, iteration)
    training_pairs, held_out = hold_out(all_pairs, settings.eval_pairs, config.seed)
    attention = config.model.attn_implementation
    steps = plan_steps(*_costs(training_pairs, attention), settings, config.seed, ranks.world_size)

    device = engine.init_distributed(ranks)
    dtype = resolve_dtype(config.model.dtype, device)
    # The label of the checkpoints' folder says what they belong to: settings and inputs of the model.
    checkpoints = target.parts("checkpoints") if main else target.folder.with_name("model.checkpoints")
    checkpoint = engine.find_checkpoint(checkpoints)
    first = checkpoint.step if checkpoint else 0
    frozen = None
    if settings.reference_mode == "cached":
        cached = reference.load(context, iteration, str(dtype), all_pairs)
    else:
        frozen = engine.open_reference(reference_name, settings, dtype, attention)
    policy = engine.open_policy(start, settings, dtype, attention, len(steps), checkpoint)
    reference_logps = _frozen_logps(frozen, attention, device) if frozen is not None else _cached_logps(cached, device)
    trainer = Trainer(settings, policy, reference_logps, attention, device, ranks, training_pairs, held_out)
    if not first:
        trainer.check_probes(_probes(context, iteration))

    title = "align" if iteration == ALIGN else f"train iteration {iteration}"
    log = watch = None
    if main:
        shown_settings = flat_settings(settings, "align" if iteration == ALIGN else "train")
        folder = context.run.iteration(iteration)
        log = MetricsLog(folder, settings.report_to, f"{context.run.path.name} {title}", shown_settings, first)
        watch = Watch()
        for row in log.rows:
            watch.see(row["step"], row, settings.beta)
    saved_at = time.monotonic()
    values: dict[str, float] = dict(log.rows[-1]) if log and log.rows else {}
    with progress.step(title, len(steps), "steps", first, quiet=not main) as shown:
        for number in range(first, len(steps)):
            done, last = number + 1, number + 1 == len(steps)
            values = trainer.step(steps[number])
            if number == 0:
                _require_ln2(values, settings, start == reference_name, dtype)
            if held_out and (last or done % settings.eval_steps == 0):
                values |= trainer.evaluate()
            due = settings.save_minutes > 0 and time.monotonic() - saved_at > 60 * settings.save_minutes
            stop, due, values["perf/peak_memory_gb"] = _agree(request.received, due, peak_memory_gb(device), device)
            if log and watch:
                log.write(done, {"epoch": done / len(steps) * settings.num_train_epochs, **values})
                for warning in watch.see(done, values, settings.beta):
                    progress.console.print(f"  warning: {warning}")
            shown.advance(1, f"loss {values['loss']:.3f}, accuracy {values['rewards/accuracies']:.2f}")
            due = due or (settings.save_steps > 0 and done % settings.save_steps == 0)
            if stop or (due and not last):
                engine.save_checkpoint(policy, checkpoints, done, settings.save_total_limit)
                saved_at = time.monotonic()
            if stop:
                raise Preempted(f"{title}: ended on request after step {done} of {len(steps)}, which is saved")
    facts = {
        "steps": len(steps),
        "pairs": len(training_pairs),
        "held_out": len(held_out),
        "dropped": dict(dropped),
        "world_size": ranks.world_size,
        "warnings": watch.warnings if watch else [],
    }
    card = model_card(
        iteration,
        (iteration > ALIGN and config.model.aligned) or config.model.initial,
        sorted({pair.lang for pair in training_pairs}),
        flat_settings(settings, "train"),
        {key: facts[key] for key in ("steps", "pairs", "held_out")},
        values,
    )
    engine.export(policy, start, target.folder, card)
    del frozen, reference_logps, trainer.reference_logps  # the exported weights take its place
    _require_same_model(policy, target.folder, settings, dtype, attention, device, training_pairs[0].example)
    if log:
        log.close()
        target.finish(len(training_pairs), facts, started)
        remove(checkpoints)
    dist.barrier()
    engine.close_distributed()


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


def _require_same_model(
    policy: Any,
    folder: Path,
    train: TrainConfig,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    example: Example,
) -> None:
    """Open what was exported and hold its log-probabilities of one pair against the trained model's.

    Raises:
        RuntimeError: they differ; the exported folder is then not what was trained.
    """
    exported = engine.open_reference(str(folder), train, dtype, attention)
    policy.eval()
    with torch.no_grad():
        trained_S = batch_logps(policy, [example], attention, device)
        exported_S = batch_logps(exported, [example], attention, device)
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
