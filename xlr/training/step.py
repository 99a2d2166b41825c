"""An optimizer step as one rank computes it: losses, gradients, metrics.

Shapes: `B` pairs of a micro-batch; sequences alternate: chosen, rejected, chosen, rejected, ...
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from xlr.cluster.exchange import gather
from xlr.cluster.ranks import Ranks
from xlr.maths.batching import Batch, micro_batches
from xlr.maths.losses import kl_estimate, nll
from xlr.model.experts import aux_loss_coef
from xlr.model.gpus import peak_flops
from xlr.model.logprobmodel import batch_balance, batch_logps
from xlr.records import Example
from xlr.settings.trainconfig import TrainConfig
from xlr.training.facts import MetricsRow
from xlr.training.inputs import TrainingPair, mismatched, pair_costs
from xlr.training.metrics import Metrics
from xlr.training.pairlosses import pair_losses
from xlr.zero import engine

# Pairs -> the reference's log-probabilities of chosen and rejected in nats, `(B, 2)`.
PairLogps = Callable[[Sequence[TrainingPair]], Tensor]


def frozen_logps(frozen: Any, attn_implementation: str, device: torch.device) -> PairLogps:
    """A function that computes the log-probabilities with the frozen reference. Each call is a collective."""

    def logps(pairs: Sequence[TrainingPair]) -> Tensor:
        with torch.no_grad():
            return batch_logps(frozen, [pair.example for pair in pairs], attn_implementation, device).view(-1, 2)

    return logps


def cached_logps(cached: Mapping[TrainingPair, tuple[float, float]], device: torch.device) -> PairLogps:
    """A function that looks up log-probabilities computed before training."""

    def logps(pairs: Sequence[TrainingPair]) -> Tensor:
        return torch.tensor([cached[pair] for pair in pairs], device=device)

    return logps


def no_logps(device: torch.device) -> PairLogps:
    """Zeros, for losses without a reference: a log-ratio is then the policy's log-probability."""

    def logps(pairs: Sequence[TrainingPair]) -> Tensor:
        return torch.zeros(len(pairs), 2, device=device)

    return logps


def looked_up(causal_lm: Any) -> int:
    """Parameters that no product uses: the input embedding, unless it is the output embedding, too."""
    embedding = causal_lm.get_input_embeddings().weight
    tied = embedding is causal_lm.get_output_embeddings().weight
    return 0 if tied else getattr(embedding, "ds_numel", embedding.numel())


class Trainer:
    """Computes one rank's part of a step: losses and gradients of its micro-batches, and metrics over all ranks."""

    def __init__(
        self,
        train: TrainConfig,
        policy: Any,
        reference_logps: PairLogps,
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
        self.aux_loss_coef = aux_loss_coef(
            policy.module.causal_lm.config, train.router_aux_loss_coef, "router_aux_loss_coef"
        )
        self.languages = sorted({pair.lang for pair in training_pairs})
        self.parameters = sum(getattr(p, "ds_numel", p.numel()) for p in policy.module.parameters())
        """Of the whole model, on all ranks."""
        multiplied = self.parameters - looked_up(policy.module.causal_lm)
        # Per parameter and token: 2 FLOP forward, 4 backward, and 2 for the forward pass of a frozen reference. KTO
        # asks both models about as many tokens once more.
        extra = 4 if "kto" in train.loss_types else 0
        self.flops_per_token = multiplied * ((8 if train.used_reference == "frozen" else 6) + extra)
        self.peak_flops = peak_flops(device) * ranks.world_size

    def logps(self, examples: Sequence[Example], engine: Any = None) -> Tensor:
        """Log-probabilities `(S,)` of the examples' responses in nats, under the policy or another engine."""
        return batch_logps(engine or self.policy, examples, self.attn_implementation, self.device)

    def step(self, micro_steps: Sequence[Sequence[Batch]]) -> MetricsRow:
        """Run one optimizer step over a global batch. Every rank returns the same metrics.

        Apart from DeepSpeed's collectives there is one: the sum of the metrics, before the optimizer step.

        Args:
            micro_steps: `[micro-step][rank]` -> indices of pairs.

        Raises:
            FloatingPointError: a loss or the gradient is not finite. Raised on every rank; no weight has changed.
        """
        begun = time.monotonic()
        reference_point = self._reference_point(self.pairs, micro_steps)
        global_pairs = sum(len(batch) for micro_step in micro_steps for batch in micro_step)
        global_tokens = sum(self._tokens(batch) for micro_step in micro_steps for batch in micro_step)
        metrics = self._metrics()
        seen: list[tuple[list[TrainingPair], Tensor]] = []
        with engine.one_reduction(self.policy):
            for number, micro_step in enumerate(micro_steps):
                self.policy.set_gradient_accumulation_boundary(number == len(micro_steps) - 1)
                batch = [self.pairs[i] for i in micro_step[self.ranks.rank]]
                losses_B, aux_loss = self._losses(batch, metrics, reference_point)
                seen.append((batch, losses_B.detach()))
                # DeepSpeed averages gradients over ranks, but the mean must be over the pairs of the global batch.
                loss = losses_B.sum() * self.ranks.world_size / global_pairs
                if aux_loss is not None:
                    share = self._tokens(micro_step[self.ranks.rank]) / global_tokens
                    loss = loss + self.aux_loss_coef * aux_loss * self.ranks.world_size * share
                self.policy.backward(loss, scale_wrt_gas=False)
        values = metrics.reduce()
        if not math.isfinite(values["loss"]):
            raise FloatingPointError(f"the loss is {values['loss']} for {_names(seen, not_finite=True)}")
        learning_rate = self.policy.get_lr()[0]
        self.policy.set_gradient_accumulation_boundary(True)
        self.policy.step()
        if self.policy.optimizer.overflow:  # DeepSpeed did not change the weights
            raise FloatingPointError(f"the gradient is not finite at the step with {_names(seen, not_finite=False)}")
        seconds = time.monotonic() - begun
        if "kto" in self.train.loss_types:
            values["reference_point"] = float(reference_point)
        return values | {
            "learning_rate": learning_rate,
            "grad_norm": float(self.policy.get_global_grad_norm() or 0.0),
            "perf/tokens_per_second": values["num_tokens"] / seconds,
            "perf/mfu": self.flops_per_token * values["num_tokens"] / seconds / self.peak_flops,
        }

    def evaluate(self) -> MetricsRow:
        """Metrics of the held-out pairs, with names prefixed by `eval_`."""
        lengths, rows = pair_costs(self.held_out, self.attn_implementation)
        metrics = self._metrics()
        micro_steps = micro_batches(lengths, self.train.tokens_at_once, self.ranks.world_size, rows)
        self.policy.eval()
        reference_point = self._reference_point(self.held_out, micro_steps)
        with torch.no_grad():
            for micro_step in micro_steps:
                self._losses([self.held_out[i] for i in micro_step[self.ranks.rank]], metrics, reference_point)
        self.policy.train()
        return {f"eval_{name}": value for name, value in metrics.reduce().items() if name != "num_tokens"}

    def _metrics(self) -> Metrics:
        return Metrics(self.languages, self.device, self.train.used_reference is not None)

    def _tokens(self, batch: Batch) -> int:
        return sum(self.pairs[i].example.num_tokens for i in batch)

    def _reference_point(self, pairs: Sequence[TrainingPair], micro_steps: Sequence[Sequence[Batch]]) -> Tensor | float:
        """KTO's reference point for a global batch: from its prompts with the responses to others of them.

        A collective if KTO is one of the losses. What is longer than `max_length` or the model's positions is left out.

        Args:
            micro_steps: `[micro-step][rank]` -> indices of `pairs`.
        """
        if "kto" not in self.train.loss_types:
            return 0.0
        step = sorted(index for micro_step in micro_steps for batch in micro_step for index in batch)
        text = self.policy.module.causal_lm.config.get_text_config()
        limit = min(self.train.max_length, getattr(text, "max_position_embeddings", self.train.max_length))
        others = [pair for pair in mismatched([pairs[index] for index in step]) if pair.length <= limit]
        lengths, rows = pair_costs(others, self.attn_implementation)
        sums_2 = torch.zeros(2, dtype=torch.float64, device=self.device)  # of log-ratios, and their number
        with torch.no_grad():
            for micro_step in micro_batches(lengths, self.train.tokens_at_once, self.ranks.world_size, rows):
                own = [others[index] for index in micro_step[self.ranks.rank]]
                asked = own or self.pairs[:1]  # every rank must enter ZeRO's collectives
                logps_B2 = self.logps([pair.example for pair in asked]).view(-1, 2)
                ratios_B2 = (logps_B2 - self.reference_logps(asked)).double()
                if own:
                    sums_2 += torch.stack([ratios_B2.sum(), torch.ones_like(ratios_B2).sum()])
        dist.all_reduce(sums_2)
        return kl_estimate(*sums_2)

    def _losses(
        self, batch: Sequence[TrainingPair], metrics: Metrics, reference_point: Tensor | float
    ) -> tuple[Tensor, Tensor | None]:
        """The loss of each pair of a micro-batch, `(B,)`, and its load-balancing loss, where that has a coefficient.

        Adds their metrics to `metrics`.
        """
        # A rank without pairs computes one pair with weight 0, because every rank must enter ZeRO's collectives.
        pairs = batch or self.pairs[:1]
        examples = [pair.example for pair in pairs]
        reference_logps_B2 = self.reference_logps(pairs)
        tokens = sum(example.num_tokens for example in examples) if batch else 0
        logps_S, aux_loss = self._logps_and_aux_loss(examples, tokens, metrics)
        logps_B2 = logps_S.view(-1, 2)
        chosen_logps_B, rejected_logps_B = logps_B2.T
        lengths_B2 = torch.tensor([list(map(len, e.responses)) for e in examples], device=self.device)
        policy_losses_B = pair_losses(self.train, logps_B2, reference_logps_B2, lengths_B2, reference_point)
        nll_B = nll(chosen_logps_B, lengths_B2[:, 0])
        weights_B = torch.tensor([pair.weight for pair in pairs], device=self.device)
        losses_B = weights_B * policy_losses_B + self.train.nll_weight * nll_B
        if not batch:
            return 0.0 * losses_B, aux_loss
        rewards_B2 = self.train.beta * (logps_B2 - reference_logps_B2).detach()
        if self.train.used_reference is None:
            rewards_B2 = rewards_B2 / lengths_B2  # SimPO's reward; sums would favour short responses
        chosen_rewards_B, rejected_rewards_B = rewards_B2.T
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
                # Estimates KL(reference || policy) per sequence, as the starting model sampled the responses.
                "kl": -(chosen_rewards_B + rejected_rewards_B) / (2 * self.train.beta),
            },
            tokens,
        )
        return losses_B, aux_loss

    def _logps_and_aux_loss(
        self, examples: Sequence[Example], tokens: int, metrics: Metrics
    ) -> tuple[Tensor, Tensor | None]:
        if self.aux_loss_coef == 0:
            return self.logps(examples), None
        logps_S, aux_loss, loads_LE = batch_balance(self.policy, examples, self.attn_implementation, self.device)
        metrics.add_balance(aux_loss.detach(), loads_LE, tokens)
        return logps_S, aux_loss


def _names(seen: Sequence[tuple[Sequence[TrainingPair], Tensor]], not_finite: bool) -> str:
    """The pairs of a step on all ranks, or only those whose loss is not finite. A collective."""
    own = [
        f"{pair.lang} {pair.id}"
        for pairs, losses_B in seen
        for pair, loss in zip(pairs, losses_B.tolist(), strict=False)  # a rank without pairs has one loss
        if not (not_finite and math.isfinite(loss))
    ]
    names = ", ".join(name for names in gather(own) for name in names)
    return f"the pairs {names}; this step changed no weight, and the last checkpoint is intact"
