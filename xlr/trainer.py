"""The DPO loop under ZeRO-3, the reference frozen beside the policy; one process is one rank.

Shapes: `B` pairs of a micro-batch; sequences stand chosen, rejected, chosen, rejected, ...
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xlr import engine, progress
from xlr.batching import Batch, micro_batches
from xlr.config import TrainConfig
from xlr.encoding import Example, batch_shape
from xlr.errors import UserError
from xlr.launch import Ranks
from xlr.losses import dpo_logits, ipo_loss, nll, sigmoid_loss
from xlr.metrics import Metrics, MetricsLog, peak_flops
from xlr.models import resolve_dtype
from xlr.stage import Context
from xlr.store import read_json, remove
from xlr.training import ALIGN, TrainingPair, artifact, load_pairs, reference_model, section, start_model
from xlr.worker import batch_logps


def plan_steps(
    lengths: Sequence[int], train: TrainConfig, seed: int, world_size: int, rows: Sequence[int] | None = None
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
        FloatingPointError: a loss became NaN or infinite; names the pairs.
    """
    started = time.time()
    config, settings = context.config, section(context, iteration)
    if iteration > ALIGN:
        context.require_model(iteration - 1)
    target = artifact(context, iteration)
    folder = context.run.iteration(iteration)
    main = ranks.rank == 0
    training_pairs, dropped = load_pairs(context, iteration)
    attention = config.model.attn_implementation
    lengths, padded_rows = batch_shape([pair.example for pair in training_pairs], attention)
    steps = plan_steps(lengths, settings, config.seed, ranks.world_size, padded_rows)

    device = engine.init_distributed(ranks)
    dtype = resolve_dtype(config.model.dtype, device)
    policy = engine.open_policy(start_model(context, iteration), settings, dtype, attention, len(steps))
    reference = engine.open_reference(reference_model(context, iteration), settings, dtype, attention)
    trainer = _Trainer(settings, policy, reference, device, attention, ranks, training_pairs)
    trainer.check_probes(_probes(context, iteration))

    # The label of the checkpoints' folder says what they belong to: settings and inputs of the model.
    checkpoints = target.parts("checkpoints") if main else target.folder.with_name("model.checkpoints")
    first = engine.load_checkpoint(policy, checkpoints)
    log = MetricsLog(folder, first) if main else None
    label = "align" if iteration == ALIGN else f"train iteration {iteration}"
    with progress.step(label, len(steps), "steps", first, quiet=not main) as shown:
        for number in range(first, len(steps)):
            values = trainer.step(steps[number])
            if number == 0:
                _require_ln2(values, settings, start_model(context, iteration) == reference_model(context, iteration))
            if log:
                log.write(number + 1, {"epoch": (number + 1) / len(steps) * settings.num_train_epochs, **values})
            accuracy = values["rewards/accuracies"]
            shown.advance(1, f"loss {values['loss']:.3f}, accuracy {accuracy:.2f}")
            if settings.save_steps and (number + 1) % settings.save_steps == 0 and number + 1 < len(steps):
                engine.save_checkpoint(policy, checkpoints, number + 1, keep=1)
    engine.export(policy, start_model(context, iteration), target.folder)
    if log:
        log.close()
        facts = {
            "steps": len(steps),
            "pairs": len(training_pairs),
            "dropped": dict(dropped),
            "world_size": ranks.world_size,
        }
        target.finish(len(training_pairs), facts, started)
        remove(checkpoints)
    dist.barrier()
    engine.close_distributed()


def _probes(context: Context, iteration: int) -> list[dict[str, Any]]:
    """Sequences that the scorer measured under this iteration's starting model."""
    file = context.run.iteration(iteration) / "scores" / "probes.json"
    return read_json(file) if iteration != ALIGN and file.is_file() else []


def _require_ln2(values: dict[str, float], train: TrainConfig, same_models: bool) -> None:
    """At step 0 the policy equals the reference, so the sigmoid loss is ln 2 whatever the data.

    Raises:
        UserError: it is not.
    """
    if not same_models or train.loss_type != "sigmoid":
        return
    preference_loss = values["loss"] - train.nll_weight * values["nll_loss"]
    if abs(preference_loss - math.log(2)) > 1e-3:
        raise UserError(
            f"the DPO loss at step 0 is {preference_loss:.6f}, not ln 2 = {math.log(2):.6f}, although the policy "
            "equals the reference: the two engines compute differently; use the same precision and attn_implementation"
        )


class _Trainer:
    """One rank's half of the loop: micro-batches in, metrics out."""

    def __init__(
        self,
        train: TrainConfig,
        policy: Any,
        reference: Any,
        device: torch.device,
        attn_implementation: str,
        ranks: Ranks,
        training_pairs: Sequence[TrainingPair],
    ):
        self.train = train
        self.policy = policy
        self.reference = reference
        self.device = device
        self.attn_implementation = attn_implementation
        self.ranks = ranks
        self.pairs = training_pairs
        self.languages = sorted({pair.lang for pair in training_pairs})
        self.parameters = sum(getattr(p, "ds_numel", p.numel()) for p in policy.module.parameters())
        self.peak_flops = peak_flops(device) * ranks.world_size

    def _logps(self, model: Any, examples: Sequence[Example]) -> Tensor:
        return batch_logps(model, examples, self.attn_implementation, self.device)

    def check_probes(self, probes: Sequence[dict[str, Any]]) -> None:
        """Scorer and trainer must agree on what a sequence's log-probability is.

        Raises:
            UserError: they do not.
        """
        if not probes:
            return
        examples = [Example(tuple(probe["prompt"]), (tuple(probe["response"]),)) for probe in probes]
        with torch.no_grad():
            ours_S = self._logps(self.policy, examples).cpu()
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

        Two collectives of ours: the metrics' sum before the optimizer step, and what ZeRO does inside.
        """
        begun = time.monotonic()
        global_pairs = sum(len(batch) for micro_step in micro_steps for batch in micro_step)
        metrics = Metrics(self.languages)
        for number, micro_step in enumerate(micro_steps):
            batch = micro_step[self.ranks.rank]
            last = number == len(micro_steps) - 1
            self.policy.set_gradient_accumulation_boundary(last)
            self._micro_step([self.pairs[i] for i in batch], global_pairs, metrics)
        values = metrics.reduce(self.device)
        if not math.isfinite(values["loss"]):
            ids = [self.pairs[i].id for micro_step in micro_steps for batch in micro_step for i in batch]
            raise FloatingPointError(f"the loss is {values['loss']} at the step with the pairs {', '.join(ids)}")
        learning_rate = self.policy.get_lr()[0]
        self.policy.step()
        seconds = time.monotonic() - begun
        tokens = values["num_tokens"]
        # 2 FLOP a parameter and token forward, twice that backward, and the reference's forward pass.
        flops = 8 * self.parameters * tokens
        return values | {
            "learning_rate": learning_rate,
            "grad_norm": float(self.policy.get_global_grad_norm() or 0.0),
            "perf/tokens_per_second": tokens / seconds,
            "perf/mfu": flops / seconds / self.peak_flops,
        }

    def _micro_step(self, batch: Sequence[TrainingPair], global_pairs: int, metrics: Metrics) -> None:
        # A rank without pairs computes another's with weight 0: ZeRO's collectives need every rank.
        weight = 1.0 if batch else 0.0
        examples = [pair.example for pair in batch or self.pairs[:1]]
        with torch.no_grad():
            reference_chosen_logps_B, reference_rejected_logps_B = self._logps(self.reference, examples).view(-1, 2).T
        chosen_logps_B, rejected_logps_B = self._logps(self.policy, examples).view(-1, 2).T
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
        # DeepSpeed averages gradients over ranks; the mean is over the pairs of the global batch.
        self.policy.backward(weight * losses_B.sum() * self.ranks.world_size / global_pairs, scale_wrt_gas=False)
        if batch:
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
