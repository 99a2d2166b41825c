"""`xlr selftest FOLDER`: does this machine compute what it should, how fast, how repeatably?

Runs every stage on a model of random weights, with the real Ray, DeepSpeed and files, then scores the same responses
again. The gates of the stages compare scorer, trainer, exported model and a plain forward pass. Writes
`FOLDER/selftest.json`; the run is in `FOLDER/run`.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xlr import pipeline
from xlr.cluster import launcher
from xlr.cluster.ranks import Ranks, ranks
from xlr.errors import UserError
from xlr.foreign.modelfiles import weight_bytes
from xlr.maths import memory
from xlr.maths.logprobs import GPU_CHUNK_TOKENS
from xlr.maths.noise import allowed_difference
from xlr.records import START, Response, Score
from xlr.rewarding.modes import score_rows
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import read_json, remove, write_json
from xlr.run.manifests import Manifest, read_manifest, rows_of
from xlr.selftest import collectives, material
from xlr.selftest.check import Check
from xlr.settings.config import Config
from xlr.shipped import RECIPES
from xlr.terminal.console import duration
from xlr.tracking.metricslog import whole_rows
from xlr.work.dropped import Dropped

# Of the data sheet's rate: a third less than measured for DPO of 8B models elsewhere. Smaller shapes reach less.
_LOW_MFU = {"tiny": 0.0, "1b": 0.12, "8b": 0.25}
_MORE = 1.2  # times the formula's memory
_SLOW_SAVE = 1e9  # bytes a second: a checkpoint of an 8B model, 96 GB, takes a minute and a half
_REFUSED = "do what the message says, and run it again with a new folder"
_NO_REMEDY = "nothing can be trusted until it is found: run it again, and report it with the log"


def configuration(folder: Path, shape: str, processes: int | None) -> Config:
    """A run of one iteration that takes some minutes on the shape's usual device."""
    small = shape == "tiny"
    training: dict[str, Any] = {
        "global_batch_size": 4 if small else 32,
        "num_train_epochs": 1,
        "max_length": 2048,
        "save_steps": 3,
        "processes": processes,
        "report_to": [],
    }
    return Config.model_validate(
        {
            "run_dir": str(folder / "run"),
            "languages": ["es", "de"],
            "iterations": 1,
            "model": {"initial": str(folder / "model")},
            "prompts": {"path": str(RECIPES / "quickstart" / "prompts"), "limit": 4 if small else 20},
            "align": {**training, "preferences": str(folder / "preferences.jsonl")},
            "generate": {"num_samples": 4 if small else 10, "max_new_tokens": 24 if small else 400},
            "train": training,
        }
    )


def examine(folder: Path, shape: str, processes: int | None) -> Iterator[Check]:
    """Yield each check as it is made, and write all of them to `FOLDER/selftest.json`.

    Args:
        folder: is made; on the file system that runs will use.
        shape: one of `material.SHAPES`.
        processes: training processes; None starts one per GPU.

    Raises:
        UserError: the folder exists.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; give a new folder, or remove it")
    found: list[Check] = []
    begun = time.monotonic()
    for make in (_meet, _prepare, _run, _learn, _save, _score, _repeat):
        try:
            for check in make(folder, shape, processes):
                found.append(check)
                yield check
        except (UserError, RuntimeError, FloatingPointError) as error:
            remedy = _REFUSED if isinstance(error, UserError) else _NO_REMEDY
            found.append(Check(make.__name__.removeprefix("_"), str(error), remedy))
            yield found[-1]
            break
    figures = {"shape": shape, "seconds": round(time.monotonic() - begun, 1)}
    write_json(folder / "selftest.json", {**figures, "checks": [asdict(check) for check in found]})


def meet(folder: Path) -> None:
    """Check the collectives as one of several ranks; rank 0 writes the result down."""
    own = ranks() or Ranks(0, 1, 0)
    check = collectives.reduce("", own)
    if own.rank == 0:
        write_json(folder / "collectives.json", asdict(check))


def _meet(folder: Path, _shape: str, processes: int | None) -> Iterator[Check]:
    """How fast the ranks reduce, if there are several."""
    import torch

    folder.mkdir(parents=True)
    count = processes or max(1, torch.cuda.device_count())
    if count > 1:
        launcher.spawn(["selftest", str(folder), "--meet"], count, folder / "collectives.log")
        yield Check(**read_json(folder / "collectives.json", Check, "run it again"))


def _prepare(folder: Path, shape: str, _processes: int | None) -> Iterator[Check]:
    """Write the model and the preferences."""
    begun = time.monotonic()
    material.write_model(folder / "model", shape, seed=0)
    small = shape == "tiny"
    material.write_preferences(folder / "preferences.jsonl", pairs=20 if small else 256, repeats=1 if small else 12)
    size = weight_bytes(folder / "model")
    yield Check("model", f"{shape}, random weights, {size / 1e9:.3g} GB, written in {duration(_since(begun))}")


def _run(folder: Path, shape: str, processes: int | None) -> Iterator[Check]:
    """Run every stage. Their gates refuse wrong numbers."""
    context = Context(configuration(folder, shape, processes))
    plan = pipeline.stages(context.config)
    begun = time.monotonic()
    with pipeline.holding(context, plan):
        pipeline.check(context)
        pipeline.run_all(context, plan)
    yield Check(
        "numerics",
        "scorer, trainer, exported model and a plain forward pass agree on log-probabilities "
        f"({len(plan)} stages in {duration(_since(begun))})",
    )


def _learn(folder: Path, shape: str, processes: int | None) -> Iterator[Check]:
    """Training: the first loss, speed, memory."""
    import torch

    rows = [row for row in whole_rows(folder / "run" / "iter0" / "metrics.jsonl") if "loss" in row]
    first = rows[0]["loss"] - rows[0]["nll_loss"]
    yield Check("loss at step 0", f"{first:.6f}, ln 2 = {math.log(2):.6f}")
    warm = rows[1:] or rows
    rate, mfu = (statistics.median(row[f"perf/{name}"] for row in warm) for name in ("tokens_per_second", "mfu"))
    remedy = (
        f"{_LOW_MFU[shape]:.0%} and more is usual: see whether GPUs are shared or slowed (nvidia-smi), and the GPUs' "
        "network (collectives above)"
        if torch.cuda.is_available() and mfu < _LOW_MFU[shape]
        else ""
    )
    yield Check("training", f"{rate:,.0f} tokens/s, {mfu:.1%} of the peak rate (MFU)", remedy)
    yield _memory(max(row["perf/peak_memory_gb"] for row in rows), folder, shape, processes)


def _memory(peak: float, folder: Path, shape: str, processes: int | None) -> Check:
    """Compare the peak with the formula, which is of GPUs and bfloat16."""
    import torch

    found = f"{peak:.3g} GB a process at its peak"
    if not torch.cuda.is_available():
        return Check("training's memory", found)
    train = configuration(folder, shape, processes).align
    ranks = processes or torch.cuda.device_count()
    parts = memory.peak(
        material.sizes(shape),
        ranks,
        train.tokens_at_once,
        train.gradient_checkpointing,
        train.reference_mode == "frozen",
        GPU_CHUNK_TOKENS,
        memory.Zero(),
    )
    expected, total = sum(parts.values()) / 1e9, torch.cuda.get_device_properties(0).total_memory / 1e9
    remedy = f"{_MORE:.0%} of the formula and more: see what else uses these GPUs" if peak > _MORE * expected else ""
    return Check("training's memory", f"{found} of {total:.0f} GB; by the formula at most {expected:.3g}", remedy)


def _save(folder: Path, _shape: str, _processes: int | None) -> Iterator[Check]:
    """How fast a checkpoint is written: 12 bytes a parameter, the float32 weights and moments."""
    manifest = _manifest(folder / "run" / "iter0" / "model")
    weights = weight_bytes(folder / "model")
    saves = (manifest["facts"]["steps"] - 1) // 3
    rate = 6 * weights * saves / max(manifest["time"]["save"], 1e-9)
    large = weights > 1e9
    remedy = "choose a faster file system, or save less often (save_minutes)" if large and rate < _SLOW_SAVE else ""
    yield Check("checkpoints", f"written at {rate / 1e9:.2g} GB/s", remedy)


def _score(folder: Path, _shape: str, _processes: int | None) -> Iterator[Check]:
    """How fast responses are sampled and scored."""
    for stage, name, unit in (("sampling", "responses", "sampled"), ("scoring", "scores", "scored")):
        manifest = _manifest(folder / "run" / "iter1" / name)
        processors = manifest["processors"]
        what = f"{processors['gpus']:.0f} GPUs" if processors["gpus"] else f"{processors['cpus']:.0f} CPUs"
        rate = manifest["tokens"][unit] / max(manifest["time"]["compute"], 1e-9)
        yield Check(stage, f"{rate:,.0f} response tokens/s a worker; {what} in all")


def _repeat(folder: Path, shape: str, processes: int | None) -> Iterator[Check]:
    """Score the same responses again, in the same batches and in smaller ones."""
    config = configuration(folder, shape, processes)
    expected = {row.key: row for row in rows_of(folder / "run" / "iter1" / "scores", Score)}
    smaller = 256 if shape == "tiny" else config.score.batch_tokens // 8
    for name, tokens in (("again", config.score.batch_tokens), ("other batches", smaller)):
        score = config.score.model_copy(update={"batch_tokens": tokens})
        context = Context(config.model_copy(update={"score": score}))
        try:
            bfloat16 = context.pool.precision(config.scoring_dtype) == "bfloat16"
            found = _scored(context, folder / "run" / "selftest" / name.replace(" ", "-"))
        finally:
            context.close()
        yield _compared(f"scoring {name}", found, expected.__getitem__, bfloat16)


def _scored(context: Context, folder: Path) -> list[Score]:
    rows = rows_of(context.run.iteration(START + 1) / "responses", Response)
    target = Artifact(context.run.path, folder, "score", {}, {})
    found = score_rows(context, target, "crosslingual", rows, START + 1, folder.name, Dropped())
    remove(folder.parent)
    return found


def _compared(name: str, found: list[Score], expected: Callable[[Any], Score], bfloat16: bool) -> Check:
    differences, beyond = [], 0
    for row in found:
        other = expected(row.key)
        for own, before in zip(row.logps, other.logps, strict=True):
            differences.append(abs(own - before))
            beyond += differences[-1] > allowed_difference(before, row.num_tokens, bfloat16)
    most = max(differences)
    what = "the same bits" if most == 0 else f"differences of at most {most:.3g} nats"
    return Check(name, f"{what}, {len(found)} responses", f"{beyond} are not rounding: {_NO_REMEDY}" if beyond else "")


def _manifest(folder: Path) -> Manifest:
    manifest = read_manifest(folder)
    assert manifest is not None  # the stage has finished
    return manifest


def _since(begun: float) -> float:
    return time.monotonic() - begun
