"""Checks that stop a training with wrong numbers: log-probabilities, the first loss, the exported model."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from xlr.errors import UserError
from xlr.maths.noise import allowed_difference, allowed_loss_difference
from xlr.records import START, Example, FusedOperations
from xlr.rewarding.facts import ScoredProbe
from xlr.rewarding.scores import PROBES
from xlr.run.manifests import json_of
from xlr.settings.trainconfig import TrainConfig
from xlr.training.inputs import Training
from xlr.training.pairlosses import AVERAGED, at_zero
from xlr.training.step import Trainer
from xlr.zero import engine


def require_scorers_logps(trainer: Trainer, probes: Sequence[ScoredProbe], bfloat16: bool) -> None:
    """Check that trainer and scorer compute the same log-probabilities.

    Args:
        probes: see `scored_probes`.
        bfloat16: whether one of the two computes in bfloat16.

    Raises:
        UserError: they do not.
    """
    if not probes:
        return
    examples = [Example(tuple(probe["prompt"]), (tuple(probe["response"]),)) for probe in probes]
    with torch.no_grad():
        ours_S = trainer.logps(examples).cpu()
    theirs_S = torch.tensor([probe["logp_policy"] for probe in probes])
    if not _agree(ours_S, theirs_S, examples, bfloat16):
        raise UserError(
            f"trainer and scorer disagree on log-probabilities, {ours_S.tolist()} against {theirs_S.tolist()}: the "
            "model or the chat template changed after scoring; score again"
        )


def _agree(ours_S: Tensor, theirs_S: Tensor, examples: Sequence[Example], bfloat16: bool) -> bool:
    """Whether two computations of the examples' responses, in nats, differ by no more than rounding explains."""
    lengths = [len(response) for example in examples for response in example.responses]
    return all(
        abs(ours - theirs) <= allowed_difference(theirs, tokens, bfloat16)
        for ours, theirs, tokens in zip(ours_S.tolist(), theirs_S.tolist(), lengths, strict=True)
    )


def scored_probes(training: Training) -> list[ScoredProbe]:
    """Sequences with the scorer's log-probabilities under the starting model; none if nothing is scored."""
    if training.iteration == START or training.context.config.pair.by == "translations":
        return []
    folder = training.context.run.iteration(training.iteration) / "scores"
    probes: list[ScoredProbe] | None = json_of(folder, PROBES, list[ScoredProbe])
    if probes is None:
        raise UserError(
            f"{folder}: has no {PROBES}; an earlier xlr made it: run `xlr redo {training.context.run.path} score`"
        )
    return probes


def require_first_loss(
    values: Mapping[str, float], weights: Sequence[float], train: TrainConfig, same_models: bool, dtype: torch.dtype
) -> None:
    """Check the loss at step 0: while the policy equals the reference, it is the same for any data, DPO's ln 2.

    Args:
        values: the metrics of step 0.
        weights: how much each pair of step 0 counts, over all ranks.
        same_models: whether the policy starts from the reference's weights; otherwise nothing is checked.

    Raises:
        UserError: the loss has another value.
    """
    # SimPO is of the policy's own log-probabilities, so its first value depends on the data.
    if not same_models or "simpo" in train.loss_types:
        return
    preference_loss = values["loss"] - train.nll_weight * values["nll_loss"]
    # Cached log-probabilities were computed in other batches, which changes bfloat16 results.
    rounded = dtype != torch.float32 and train.reference_mode == "cached"
    # A mean over a response's tokens has no larger errors than one token.
    pairs, mean = len(weights), statistics.fmean(weights)
    losses = [
        (at_zero(train, name, weight), 2 * pairs if name in AVERAGED else values["num_tokens"])
        for name, weight in train.losses
    ]
    expected = mean * sum(zero.value for zero, _ in losses)
    allowed = max(1.0, *weights) * allowed_loss_difference(losses, pairs, rounded)
    if abs(preference_loss - expected) > allowed:
        raise UserError(
            f"the preference loss at step 0 is {preference_loss:.6f}, not {expected:.6f}, although the policy equals "
            "the reference: the two compute differently; use the same precision and attn_implementation for both, and "
            "compute a cached reference again"
        )


def require_same_model(trainer: Trainer, folder: Path, dtype: torch.dtype, fused: FusedOperations) -> None:
    """Open the exported folder and compare its log-probabilities of one pair with those of the trained weights.

    Raises:
        RuntimeError: they differ: the folder does not hold the trained weights.
    """
    exported = engine.open_reference(str(folder), trainer.train, dtype, trainer.attn_implementation, fused)
    example = trainer.pairs[0].example
    trainer.policy.eval()
    with torch.no_grad():
        trained_S = trainer.logps([example])
        exported_S = trainer.logps([example], exported)
    same = (
        torch.allclose(trained_S, exported_S, rtol=1e-5, atol=1e-4)
        if dtype == torch.float32
        else _agree(trained_S, exported_S, [example], bfloat16=True)
    )
    if not same:
        raise RuntimeError(
            f"{folder}: the exported model gives {exported_S.tolist()} nats, the trained model {trained_S.tolist()}"
        )
