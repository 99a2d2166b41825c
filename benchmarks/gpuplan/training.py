"""Part C: training with DeepSpeed ZeRO-3 in bfloat16 as the only rank."""

import functools
import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor

from xlr.cluster.ranks import RENDEZVOUS, Ranks
from xlr.maths import memory
from xlr.maths.batching import Batch
from xlr.maths.logprobs import GPU_CHUNK_TOKENS
from xlr.maths.losses import nll
from xlr.model import logprobmodel
from xlr.model.fused import FusedOperations
from xlr.model.logprobmodel import LogprobModel, batch_logps
from xlr.model.weights import load_causal_lm
from xlr.model.worker import Worker
from xlr.packing import varlen
from xlr.packing.attention import response_masks
from xlr.packing.batch import Group
from xlr.selftest import material
from xlr.settings.modelconfig import SHARED_PROMPT
from xlr.settings.trainconfig import TrainConfig
from xlr.shipped import shipped
from xlr.training.export import export
from xlr.training.gates import require_same_model
from xlr.training.inputs import TrainingPair, pair_costs, plan_steps
from xlr.training.pairlosses import pair_losses
from xlr.training.step import Trainer, frozen_logps
from xlr.zero import engine

from .plan import NO_GPU, Check, Result, Setup, apart, judged, random_example, release, synchronize

ONLY = Ranks(0, 1, 0)
BF16 = torch.bfloat16
FUSED: FusedOperations = "auto"
# Llama3-8B's width with as many layers as one GPU can train.
NARROW = "8b width, 8 layers"


@dataclass(frozen=True)
class Job:
    """A model's folder, pairs, and the settings of a training.

    DeepSpeed keeps the memory of its engines to the end of the process. So each check that opens some computes `apart`.
    """

    shape: memory.Shape
    folder: Path
    device: torch.device
    pairs: list[TrainingPair]
    train: TrainConfig

    def steps(self, count: int) -> list[list[list[Batch]]]:
        """The plan of so many steps."""
        lengths, rows = pair_costs(self.pairs, SHARED_PROMPT)
        return plan_steps(lengths, rows, self.train, 0, 1)[:count]

    def trainer(self, total: int, checkpoint: engine.Checkpoint | None = None) -> Trainer:
        """Open policy and frozen reference."""
        only_rank(self.folder.parent)
        name = str(self.folder)
        frozen = engine.open_reference(name, self.train, BF16, SHARED_PROMPT, FUSED)
        policy = engine.open_policy(name, self.train, BF16, SHARED_PROMPT, total, checkpoint, FUSED)
        logps = frozen_logps(frozen, SHARED_PROMPT, self.device)
        return Trainer(self.train, policy, logps, SHARED_PROMPT, self.device, ONLY, self.pairs)


@functools.cache
def only_rank(work: Path) -> None:
    """Make this process the only rank. DeepSpeed allows it once a process."""
    own = {RENDEZVOUS: str(work / f"meet-{os.getpid()}"), "GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    os.environ.update(own)
    engine.init_distributed(ONLY)


def job(setup: Setup, shape: str, **settings: Any) -> Job:
    """A training with the settings of the 8B recipe where they matter here; writes the model if it is not there."""
    if shape == NARROW:
        material.SHAPES[NARROW] = material.SHAPES["8b"] | {"num_hidden_layers": 8}
    folder = setup.work / shape.replace(", ", "-").replace(" ", "-")
    if not folder.exists():
        with torch.device(setup.device):
            material.write_model(folder, shape, seed=0)
        release(setup)
    batch, chance = 4 if setup.tiny else 14, Random(0)
    prompt, mean, most = (12, 16, 24) if setup.tiny else (200, 500, 2400)
    pairs = [
        TrainingPair(
            str(number),
            "en",
            random_example(
                prompt, [min(most, int(mean * chance.lognormvariate(-0.125, 0.5)) + 2) for _ in range(2)], number
            ),
            str(number),
        )
        for number in range(4 * batch)
    ]
    usual: dict[str, Any] = {
        "global_batch_size": batch,
        "micro_batch_tokens": 128 if setup.tiny else 8192,
        "gradient_checkpointing": "selective",
        "lr_scheduler_type": "constant",
        "num_train_epochs": 10,
        "report_to": [],
    }
    return Job(material.sizes(shape), folder, setup.device, pairs, TrainConfig.model_validate(usual | settings))


def _large(setup: Setup) -> str:
    return NARROW if setup.size == "8b" else setup.size


def _small(setup: Setup) -> str:
    return "tiny" if setup.tiny else "1b"


def first_loss_and_probes(setup: Setup) -> Result:
    """10: the loss of the first step is ln 2, and the worker computes the log-probabilities of the trainer."""
    figures = apart(setup, compare_worker, job(setup, _large(setup)))
    near = all(abs(a - b) <= 0.5 + 0.02 * abs(b) for a, b in figures["probes"])
    passes = figures["loss - ln 2"] <= 1e-5 and near and figures["inv_freq"] == ["torch.float32"]
    return judged(passes, "|loss - ln 2| <= 1e-5, probes within 2 % + 0.5 nats, inv_freq float32", figures)


def compare_worker(own: Job) -> dict[str, Any]:
    """The first loss of a trainer, and the log-probabilities of some responses as trainer and worker compute them."""
    trainer = own.trainer(1)
    examples = [pair.example for pair in own.pairs[:4]]
    with torch.no_grad():
        ours = trainer.logps(examples).tolist()
    kinds = {buffer.dtype for name, buffer in trainer.policy.module.named_buffers() if "inv_freq" in name}
    (step,) = own.steps(1)
    values = trainer.step(step)
    worker = Worker(None, "bfloat16", SHARED_PROMPT, on_gpu=own.device.type == "cuda")
    theirs = worker.logps(str(own.folder), examples, "bfloat16")
    return {
        "micro-steps": len(step),
        "loss - ln 2": abs(values["loss"] - own.train.nll_weight * values["nll_loss"] - math.log(2)),
        "probes": list(zip(ours, theirs, strict=True)),
        "inv_freq": sorted(map(str, kinds)),
    }


def step_against_plain_torch(setup: Setup) -> Result:
    """11: gradient norm and one step against plain torch in float32, and without overlapping communication."""
    own = job(setup, _small(setup), learning_rate=1e-5)
    compared = apart(setup, compare_step, own)
    tree = json.loads(shipped("ds_configs", "zero3.json").read_text(encoding="utf-8"))
    tree["zero_optimization"]["overlap_comm"] = False
    (setup.work / "no_overlap.json").write_text(json.dumps(tree), encoding="utf-8")
    without = job(setup, _small(setup), learning_rate=1e-5, ds_config=str(setup.work / "no_overlap.json"))
    compared["norm without overlap"] = abs(apart(setup, first_norm, without) / compared["grad_norm"] - 1)
    passes = (
        compared["norm"] <= 2e-2
        and compared["cosine of gradients"] >= 0.99
        and compared["norm without overlap"] <= 1e-3
    )
    return judged(passes, "norm rel. <= 2e-2, cosine of gradients >= 0.99; overlap: norm rel. <= 1e-3", compared)


def first_norm(own: Job) -> float:
    """The gradient norm of the first step."""
    return own.trainer(1).step(own.steps(1)[0])["grad_norm"]


def compare_step(own: Job) -> dict[str, float]:
    """The first step of a trainer against one of plain torch in float32.

    Adam's first update is the sign of each gradient, which rounding turns where the gradient is small. So the gradients
    are compared, as Adam's first moment holds them, and the cosine of the updates is only shown.
    """
    trainer, step = own.trainer(1), own.steps(1)[0]
    named = {name.removeprefix("causal_lm."): p for name, p in trainer.policy.module.causal_lm.named_parameters()}
    before = {name: _master(parameter) for name, parameter in named.items()}
    norm = trainer.step(step)["grad_norm"]
    updates = {name: _master(parameter) - before[name] for name, parameter in named.items()}
    moments = {name: _first_moment(parameter) for name, parameter in named.items()}
    del before
    plain_norm, gradients, plain_updates = _plain_step(own, [i for micro in step for batch in micro for i in batch])
    return {
        "grad_norm": norm,
        "norm": abs(norm / plain_norm - 1),
        "cosine of gradients": _cosine(moments, gradients),
        "cosine of updates": _cosine(updates, plain_updates),
    }


def _master(parameter: Any) -> Tensor:
    found = safe_get_full_fp32_param(parameter)
    assert found is not None
    return found.detach().cpu().clone()


def _first_moment(parameter: Any) -> Tensor:
    found = safe_get_full_optimizer_state(parameter, "exp_avg")
    assert found is not None
    return found.detach().cpu().clone()


def _cosine(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    sums = torch.zeros(3, dtype=torch.float64)
    for name in found:
        ours, theirs = found[name].flatten().double(), expected[name].flatten().double()
        sums += torch.stack([ours @ theirs, ours @ ours, theirs @ theirs])
    return float(sums[0] / (sums[1] * sums[2]).sqrt())


def _plain_step(own: Job, indices: Sequence[int]) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """The gradients' norm, the gradients and the update of the same step, without packing, ZeRO or bfloat16."""
    train = own.train
    causal_lm = load_causal_lm(own.folder, torch.float32, "sdpa").to(own.device)
    model = LogprobModel(causal_lm)
    for index in indices:
        example = own.pairs[index].example
        logps_12 = batch_logps(model, [example], "sdpa", own.device).view(1, 2)
        lengths_12 = torch.tensor([list(map(len, example.responses))], device=own.device)
        losses_1 = pair_losses(train, logps_12, logps_12.detach(), lengths_12)
        ((losses_1 + train.nll_weight * nll(logps_12[:, 0], lengths_12[:, 0])).sum() / len(indices)).backward()
    named = dict(causal_lm.named_parameters())
    gradients = {name: parameter.grad.cpu().clone() for name, parameter in named.items()}
    before = {name: parameter.detach().cpu().clone() for name, parameter in named.items()}
    norm = float(torch.nn.utils.clip_grad_norm_(causal_lm.parameters(), train.max_grad_norm))
    betas = train.adam_beta1, train.adam_beta2
    torch.optim.AdamW(named.values(), train.learning_rate, betas, train.adam_epsilon, train.weight_decay).step()
    return norm, gradients, {name: parameter.detach().cpu() - before[name] for name, parameter in named.items()}


def speed_and_memory(setup: Setup) -> Result:
    """12: tokens a second, MFU and peak memory with each way of recomputation and attention."""
    count = 2 if setup.tiny else 20
    variants: list[tuple[Any, str, bool]] = [
        ("selective", "varlen", False),
        ("selective", "loop", False),
        (True, "varlen", False),
        (False, "varlen", False),
    ]
    figures: dict[str, Any] = {} if setup.on_gpu else {"cudnn on": NO_GPU, "peak_gb": NO_GPU}
    for recompute, way, cudnn in variants + ([("selective", "loop", True)] if setup.on_gpu else []):
        own = job(setup, _large(setup), gradient_checkpointing=recompute)
        found = apart(setup, measure, own, count, way, cudnn)
        figures[f"recompute {recompute}, {way}, cudnn {'on' if cudnn else 'off'}"] = found
    measured = [own for own in figures.values() if isinstance(own, dict)]
    passes = measured[0]["mfu"] >= 0.35 and all(0.85 <= own.get("of formula", 1) <= 1.15 for own in measured)
    limit = "8b on a GPU: selective MFU >= 35 %, memory within 15 % of the formula"
    return judged(passes, limit, figures, setup.on_gpu and setup.size == "8b")


def measure(own: Job, count: int, way: str, cudnn: bool = False) -> dict[str, float]:
    """Speed of so many steps, and on GPUs the peak memory, also as a share of the formula's."""
    on_gpu = own.device.type == "cuda"
    trainer = own.trainer(count)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    with attention_by(way, cudnn):
        rows = [trainer.step(step) for step in own.steps(count)]
    warm = rows[2:] or rows[-1:]
    found = {name: median(row[f"perf/{name}"] for row in warm) for name in ("tokens_per_second", "mfu")}
    if on_gpu:
        train = own.train
        budget, recompute = train.tokens_at_once, train.gradient_checkpointing
        parts = memory.peak(own.shape, 1, budget, recompute, True, GPU_CHUNK_TOKENS, memory.Zero())
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        found["of formula"] = found["peak_gb"] * 1e9 / sum(parts.values())
    return found


@contextmanager
def attention_by(way: str, cudnn: bool = False) -> Iterator[None]:
    """Compute attention by the loop or in one call inside the block, whatever this device would take."""

    def arguments(groups: tuple[Group, ...], device: torch.device, _dtype: torch.dtype) -> dict[str, Any]:
        if way == "varlen":
            return {"groups": groups, "pieces": varlen.pieces(groups, device)}
        return {"groups": groups, "masks": response_masks(groups, device)}

    own = logprobmodel.attention_arguments
    logprobmodel.attention_arguments = arguments  # type: ignore[assignment]
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    try:
        yield
    finally:
        logprobmodel.attention_arguments = own
        torch.backends.cuda.enable_cudnn_sdp(False)


def save_and_resume(setup: Setup) -> Result:
    """13: a training resumed from its checkpoint goes on as the uninterrupted one; export keeps the weights."""
    first, more = (1, 2) if setup.tiny else (3, 5)
    figures = apart(setup, resume, job(setup, _small(setup)), first, more)
    return judged(figures["losses rel."] <= 1e-3, "losses rel. <= 1e-3; the exported model passes its gate", figures)


def resume(own: Job, first: int, more: int) -> dict[str, Any]:
    """Save after some steps, go on for some more, and do these again from the checkpoint; export.

    Raises:
        RuntimeError: the exported model is another one.
    """
    checkpoints, exported = own.folder.parent / "checkpoints", own.folder.parent / "exported"
    for old in (checkpoints, exported):
        shutil.rmtree(old, ignore_errors=True)
    trainer, steps = own.trainer(first + more), own.steps(first + more)
    for step in steps[:first]:
        trainer.step(step)
    begun = time.monotonic()
    folder = engine.save_checkpoint(trainer.policy, checkpoints, first, keep=1)
    seconds = time.monotonic() - begun
    written = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    expected = [trainer.step(step)["loss"] for step in steps[first:]]
    trainer = own.trainer(first + more, engine.find_checkpoint(checkpoints))
    losses = [trainer.step(step)["loss"] for step in steps[first:]]
    begun = time.monotonic()
    export(trainer.policy, str(own.folder), exported, "")
    figures: dict[str, Any] = {
        "losses rel.": max(abs(ours / theirs - 1) for ours, theirs in zip(losses, expected, strict=True)),
        "save_seconds": seconds,
        "save_gb": written / 1e9,
        "bytes a parameter": written / own.shape.parameters,
        "export_seconds": time.monotonic() - begun,
    }
    del trainer.reference_logps
    require_same_model(trainer, exported, BF16, FUSED)
    with torch.no_grad():
        figures["exported"] = _difference(trainer, exported)
    for done in (checkpoints, exported):
        shutil.rmtree(done)
    return figures


def _difference(trainer: Trainer, folder: Path) -> float:
    """The largest relative difference of log-probabilities between trained and exported weights."""
    other = engine.open_reference(str(folder), trainer.train, BF16, SHARED_PROMPT, FUSED)
    examples = [pair.example for pair in trainer.pairs[:4]]
    trained_S, exported_S = trainer.logps(examples), trainer.logps(examples, other)
    return float(((trained_S - exported_S) / trained_S).abs().max())


def gradient_that_is_not_finite(setup: Setup) -> Result:
    """14: a NaN in one weight's gradient is an error, and changes no weight."""
    found = apart(setup, spoil, job(setup, _small(setup)))
    passes = found["refusal"].startswith("the gradient is not finite") and found["same"]
    return judged(passes, "FloatingPointError, the weights as before", found)


def spoil(own: Job) -> dict[str, Any]:
    """What a step with a NaN in one weight's gradient says, and whether two weights are the same after it."""
    trainer, step = own.trainer(1), own.steps(1)[0]
    model = trainer.policy.module.causal_lm
    watched = [model.get_decoder().layers[0].self_attn.q_proj.weight, model.get_decoder().norm.weight]
    before = [_master(parameter) for parameter in watched]
    watched[0].register_hook(lambda gradient: torch.full_like(gradient, math.nan))
    try:
        trainer.step(step)
        refusal = "none"
    except FloatingPointError as error:
        refusal = str(error)
    synchronize(own.device)
    same = all(torch.equal(_master(p), kept) for p, kept in zip(watched, before, strict=True))
    return {"refusal": refusal[:80], "same": same}


CHECKS: dict[int, Check] = {
    10: first_loss_and_probes,
    11: step_against_plain_torch,
    12: speed_and_memory,
    13: save_and_resume,
    14: gradient_that_is_not_finite,
}
