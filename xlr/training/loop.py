"""The DPO training loop under ZeRO: steps, checkpoints, evaluations, warnings. Every rank runs it.

The reference's log-probabilities come from a frozen model beside the policy, or from the reference stage's cache. SimPO
alone has no reference.
"""

import gc
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from xlr.chat.format import chat_format
from xlr.cluster.exchange import gather
from xlr.cluster.heartbeat import heartbeats
from xlr.cluster.preemption import Preempted, Request, StartAgain
from xlr.cluster.ranks import Ranks
from xlr.errors import UserError
from xlr.foreign.modelcard import model_card
from xlr.foreign.shapes import read_shape
from xlr.maths.batching import Batch
from xlr.maths.logprobs import CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS
from xlr.maths.memory import CHECKPOINT_BYTES
from xlr.model import fused
from xlr.model.gpus import peak_memory
from xlr.model.weights import resolve_dtype
from xlr.records import START
from xlr.run.artifact import Artifact
from xlr.run.files import remove, sha256, write_json
from xlr.settings.deciding import settings
from xlr.settings.modelconfig import ModelConfig
from xlr.settings.slurmconfig import SAVING_SECONDS
from xlr.settings.trainconfig import TrainConfig
from xlr.terminal import progress
from xlr.terminal.console import console, duration
from xlr.tracking.metricslog import MetricsLog
from xlr.training import reference
from xlr.training.deadline import Deadline
from xlr.training.export import export
from xlr.training.facts import MetricsRow, TrainingFacts
from xlr.training.gates import require_first_loss, require_same_model, require_scorers_logps, scored_probes
from xlr.training.inputs import Training, pair_costs
from xlr.training.step import PairLogps, Trainer, cached_logps, frozen_logps, no_logps
from xlr.training.watch import Watch
from xlr.versions import versions
from xlr.work.pieces import PROGRESS
from xlr.zero import engine, fitting, halving

_CHECKPOINTS = "checkpoints"
_LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "xlr")  # a new version may change the weights


@dataclass(frozen=True)
class _Rank:
    """One rank's part in a training."""

    training: Training
    train: TrainConfig
    """Its settings, with the micro-batches that the run keeps."""
    wanted_tokens: int
    """The size of micro-batches that the settings or xlr wanted."""
    target: Artifact
    ranks: Ranks
    device: torch.device
    dtype: torch.dtype
    steps: list[list[list[Batch]]]

    @property
    def main(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.ranks.rank == 0

    @property
    def models(self) -> ModelConfig:
        return self.training.context.config.model


def train(training: Training, target: Artifact, ranks: Ranks) -> None:
    """Train as one rank; every rank calls this.

    Args:
        target: the model to make.

    Raises:
        UserError: a check at the start failed; with the remedy.
        FloatingPointError: a loss or gradient is NaN or infinite; names the pairs.
        Preempted: a signal asked the training to end; a checkpoint was saved.
    """
    request = Request().listen()
    clock = progress.Clock()
    if training.iteration > START and ranks.rank == 0:  # one rank reads the whole model once
        training.context.require_model(training.iteration - 1)
    device = engine.init_distributed(ranks)
    on_gpus = ranks.world_size if device.type == "cuda" else 0
    clock.count_processors(ranks.world_size * (1 if on_gpus else torch.get_num_threads()), on_gpus)
    dtype = resolve_dtype(training.context.config.model.dtype, device)
    train, wanted = _sized(training, ranks, device, dtype)
    steps = training.plan_steps(train, ranks.world_size)
    rank = _Rank(training, train, wanted, target, ranks, device, dtype, steps)
    if rank.main:
        _claim_checkpoints(rank)
    checkpoints = target.pieces_folder(_CHECKPOINTS)
    checkpoint = engine.find_checkpoint(checkpoints)
    trainer = _open(rank, checkpoint)
    log = _open_log(rank, checkpoint.step if checkpoint else 0)
    watch = Watch(training.config.used_reference is not None)
    for row in log.rows if log else ():
        watch.see(row["step"], row, training.config.beta)
    first = checkpoint.step if checkpoint else 0
    with heartbeats(ranks):
        last_metrics = _loop(rank, trainer, log, watch, first, request, checkpoints, clock)
    clock.count_memory(int(1e9 * last_metrics.get("perf/peak_memory_gb", 0.0)))
    train_pairs, held_out = training.split
    facts: TrainingFacts = {
        "steps": len(rank.steps),
        "pairs": len(train_pairs),
        "held_out": len(held_out),
        "dropped": training.dropped.counts(),
        "world_size": ranks.world_size,
        "warnings": [*_cut(rank), *watch.warnings],
    }
    _export(rank, trainer, facts, last_metrics)
    if log:
        log.close()
        tokens = {"trained on": int(sum(row["num_tokens"] for row in log.rows))}
        target.finish(len(train_pairs), facts, clock, tokens, [log.path])
        remove(checkpoints)
    dist.barrier()
    engine.close_distributed()


def _sized(training: Training, ranks: Ranks, device: torch.device, dtype: torch.dtype) -> tuple[TrainConfig, int]:
    """The settings with the micro-batches that the run keeps, and the size that they or xlr wanted.

    The first rank decides: the others may see files later.
    """
    available = engine.least_memory(device)
    sizes = (0, 0)
    if ranks.rank == 0:
        wanted = training.config.micro_batch_tokens
        if wanted == "auto":
            wanted = _chosen(training, ranks, available, device, dtype)
        sizes = halving.tokens(training.context.run.path, training.stage, wanted), wanted
    kept, wanted = gather(sizes)[0]
    return training.config.model_copy(update={"micro_batch_tokens": kept}), wanted


def _chosen(training: Training, ranks: Ranks, available: float, device: torch.device, dtype: torch.dtype) -> int:
    """The size of micro-batches that the run has chosen for these machines and settings, or chooses now."""
    run, train = training.context.run.path, training.config
    key = fitting.key_of(training.stage, train, ranks.world_size, available)
    if (known := fitting.choice(run, key)) is not None:
        return known
    chunk = GPU_CHUNK_TOKENS if device.type == "cuda" else CPU_CHUNK_TOKENS
    shape = read_shape(training.start)
    found = fitting.largest(train, shape, ranks.world_size, available, dtype.itemsize, chunk)
    tokens = found or fitting.FEWEST
    where = f"the {available / 1e9:.3g} GB of a rank"
    console.print(
        f"  micro-batches of {tokens:,} tokens fit {where}"
        if found
        else f"  warning: by the formula nothing fits {where}; micro-batches of {tokens:,} tokens are tried"
    )
    fitting.keep(run, key, tokens)
    return tokens


def _cut(rank: _Rank) -> list[str]:
    """A warning if the micro-batches are smaller than those that were wanted."""
    stage, used = rank.training.stage, rank.train.tokens_at_once
    if used == rank.wanted_tokens:
        return []
    return [f"memory ran out with {stage}.micro_batch_tokens={rank.wanted_tokens}; {used} were used instead"]


def _claim_checkpoints(rank: _Rank) -> None:
    """Check that existing checkpoints belong to this training. Their number of ranks may differ.

    Raises:
        UserError: they were written with other settings, inputs or library releases.
    """
    train_pairs, _ = rank.training.split
    conditions = versions(_LIBRARIES) | {
        "device": f"cuda {torch.cuda.get_device_name(rank.device)}" if rank.device.type == "cuda" else "cpu",
        "precision": str(rank.dtype),
        "model.attn_implementation": rank.models.attn_implementation,
        **fused.conditions(rank.models.fused_operations, rank.device.type == "cuda"),
        "cut": sha256("\n".join(f"{pair.lang} {pair.id}" for pair in train_pairs)),
    }
    rank.target.claim_pieces(_CHECKPOINTS, conditions, settings(rank.training.context.config))


def _open(rank: _Rank, checkpoint: engine.Checkpoint | None) -> Trainer:
    """Open policy and reference. A training without a checkpoint is checked against the scorer."""
    training, train = rank.training, rank.training.config
    attention, fuse = rank.models.attn_implementation, rank.models.fused_operations
    train_pairs, held_out = training.split
    reference_logps: PairLogps
    if train.used_reference is None:
        reference_logps = no_logps(rank.device)
    elif train.used_reference == "cached":
        precision = str(rank.dtype).removeprefix("torch.")
        reference_logps = cached_logps(reference.load(training, precision, [*train_pairs, *held_out]), rank.device)
    else:
        frozen = engine.open_reference(training.reference, train, rank.dtype, attention, fuse)
        reference_logps = frozen_logps(frozen, attention, rank.device)
    micro_steps = max(map(len, rank.steps))
    policy = engine.open_policy(
        training.start, train, rank.dtype, attention, len(rank.steps), checkpoint, fuse, micro_steps
    )
    trainer = Trainer(rank.train, policy, reference_logps, attention, rank.device, rank.ranks, train_pairs, held_out)
    if checkpoint is None:
        scored_low = training.context.config.score.dtype == "bfloat16"
        require_scorers_logps(trainer, scored_probes(training), scored_low or rank.dtype != torch.float32)
    return trainer


def _open_log(rank: _Rank, steps_done: int) -> MetricsLog | None:
    """Open the metrics log on rank 0; None on other ranks."""
    if not rank.main:
        return None
    training = rank.training
    name = f"{training.context.run.path.name} {training.title}"
    folder = rank.target.folder.parent
    return MetricsLog(folder, training.config.report_to, name, training.settings, steps_done)


def _loop(
    rank: _Rank,
    trainer: Trainer,
    log: MetricsLog | None,
    watch: Watch,
    first: int,
    request: Request,
    checkpoints: Path,
    clock: progress.Clock,
) -> MetricsRow:
    """Run every step from `first` on, and return the metrics of the last one.

    Raises:
        Preempted: a signal asked a rank to end; a checkpoint was saved.
    """
    training, train, total = rank.training, rank.training.config, len(rank.steps)
    values: MetricsRow = dict(log.rows[-1]) if log and log.rows else {}
    saved_at = time.monotonic()
    deadline = Deadline(CHECKPOINT_BYTES * trainer.parameters)
    with _shown(rank, first, checkpoints) as shown:
        for number in range(first, total):
            done, last, begun = number + 1, number + 1 == total, time.monotonic()
            try:
                values = trainer.step(rank.steps[number])
            except RuntimeError as error:
                _require_room(rank, number, error)
                raise
            if number == 0:
                weights = [
                    trainer.pairs[i].weight for micro_step in rank.steps[0] for batch in micro_step for i in batch
                ]
                require_first_loss(values, weights, train, training.start == training.reference, rank.dtype)
            if trainer.held_out and (last or done % train.eval_steps == 0):
                values |= trainer.evaluate()
            late = train.save_minutes > 0 and time.monotonic() - saved_at > 60 * train.save_minutes
            near = deadline.near(time.monotonic() - begun) and not last
            asked, near, late, values["perf/peak_memory_gb"] = _agree(
                [request.received, near, late], peak_memory(rank.device.type == "cuda") / 1e9, rank.device
            )
            stop = asked or near
            if log:
                log.write(done, {"epoch": done / total * train.num_train_epochs, **values})
            for warning in watch.see(done, values, train.beta):
                if rank.main:
                    console.print(f"  warning: {warning}")
            if shown:
                note = f"loss {values['loss']:.3f}, accuracy {values['rewards/accuracies']:.2f}"
                shown.advance({"": 1}, int(values["num_tokens"]), note)
            ended = time.monotonic()
            save = late or (train.save_steps > 0 and done % train.save_steps == 0)
            if stop or (save and not last):
                if log:
                    log.sync()
                with clock.measure("save"):
                    folder = engine.save_checkpoint(trainer.policy, checkpoints, done, train.save_total_limit)
                deadline.save_seconds = time.monotonic() - ended
                if rank.main:
                    _tell(folder, deadline.save_seconds, ended - begun)
                saved_at = time.monotonic()
            if stop:
                why = "on request" if asked else "before the end of its job"
                raise Preempted(f"{training.title}: ended {why} after step {done} of {total}; a checkpoint is saved")
    return values


def _require_room(rank: _Rank, number: int, error: RuntimeError) -> None:
    """Let all ranks start again with smaller micro-batches if a step failed for lack of memory.

    Raises:
        UserError: the micro-batches of the step cannot be smaller.
        StartAgain: they can.
    """
    if not halving.is_out_of_memory(error):
        return
    training, used = rank.training, rank.train.tokens_at_once
    reason = halving.reason(error)
    if all(len(batch) <= 1 for micro_step in rank.steps[number] for batch in micro_step):
        raise UserError(
            f"{training.title}: out of memory with a single pair at a time ({reason}); set "
            f"{training.stage}.gradient_checkpointing, or {training.stage}.reference_mode=cached (not with kto), use "
            "more ranks, or ask `xlr plan` what fits"
        ) from error
    lengths, _ = pair_costs(training.split[0], rank.models.attn_implementation)
    largest = max(sum(lengths[i] for i in batch) for micro_step in rank.steps[number] for batch in micro_step)
    smaller = halving.halve(training.context.run.path, training.stage, min(used, largest))
    raise StartAgain(
        f"{training.title}: out of memory in step {number + 1} with {training.stage}.micro_batch_tokens={used} "
        f"({reason}); all ranks start again with {smaller}"
    ) from error


def _tell(checkpoint: Path, seconds: float, step_seconds: float) -> None:
    """Print what a save cost. Warn if Slurm's signal would come too late for it."""
    gigabytes = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file()) / 1e9
    console.print(f"  saved a checkpoint of {gigabytes:.3g} GB in {duration(seconds)}")
    if "SLURM_JOB_ID" in os.environ and 2 * seconds + step_seconds > SAVING_SECONDS:
        console.print(
            f"  warning: Slurm tells jobs to save {SAVING_SECONDS} s before their time limit or later, which is short "
            f"for a step and such a save; set slurm.options=[--signal=USR1@{math.ceil(3 * seconds + step_seconds)}] or "
            "save to a faster file system"
        )


def _shown(rank: _Rank, first: int, checkpoints: Path) -> AbstractContextManager[progress.Step | None]:
    """The progress view of the steps on rank 0; nothing on other ranks."""
    if not rank.main:
        return nullcontext()
    keep = partial(write_json, checkpoints / PROGRESS)
    return progress.step(rank.training.title, {"": len(rank.steps)}, "steps", {"": first}, keep)


def _agree(wishes: Sequence[bool], peak_gb: float, device: torch.device) -> tuple[bool, bool, bool, float]:
    """Combine three wishes over ranks, true if any rank's is, and the highest peak memory, in one collective."""
    state = torch.tensor([*wishes, peak_gb], dtype=torch.float64, device=device)
    dist.all_reduce(state, op=dist.ReduceOp.MAX)
    first, second, third, highest = state.tolist()
    return bool(first), bool(second), bool(third), highest


def _export(rank: _Rank, trainer: Trainer, facts: TrainingFacts, last_metrics: Mapping[str, float]) -> None:
    """Write the model's folder, open it, and compare its log-probabilities with those of the trained weights."""
    training, models = rank.training, rank.models
    card = model_card(
        training.iteration,
        (training.iteration > START and models.aligned) or models.initial,
        sorted({pair.lang for pair in trainer.pairs}),
        training.settings,
        {"steps": facts["steps"], "pairs": facts["pairs"], "held_out": facts["held_out"]},
        last_metrics,
    )
    template = chat_format(training.context.config.model).template
    export(trainer.policy, training.start, rank.target.folder, card, template)
    del trainer.reference_logps  # frees a frozen reference, an engine with circular references
    gc.collect()  # the exported model needs its memory
    require_same_model(trainer, rank.target.folder, rank.dtype, models.fused_operations)
