"""Stage 4: full fine-tuning with DPO + NLL; what it reads, and the processes it runs in.

Reads the pairs and the model the iteration starts from; writes `RUN/iter{t}/model` (a Hugging Face folder),
`metrics.jsonl`, `tensorboard` and, on the way, checkpoints. Run alone with `xlr train RUN --iteration t`; the
align stage (`xlr align RUN`) is the same on English preferences, from pi_I to pi^0. The loop is in `trainer`.
"""

import contextlib
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xlr import launch, pairs
from xlr.config import TrainConfig, settings
from xlr.encoding import Example, load_tokenizer, require_same_tokenizer
from xlr.errors import UserError
from xlr.launch import Ranks
from xlr.prompts import ENGLISH, load_preferences
from xlr.records import Pair
from xlr.stage import Context, require
from xlr.store import Artifact, manifest_path, read_json, read_rows

ALIGN = 0  # the iteration that makes pi^0


@dataclass(frozen=True)
class TrainingPair:
    """A pair as token ids: the prompt once, then chosen and rejected."""

    id: str
    lang: str
    example: Example


def artifact(context: Context, iteration: int) -> Artifact:
    """The model of one iteration and what decides it."""
    config = context.config
    train = section(context, iteration)
    inputs: dict[str, str | Path] = {
        "start": start_model(context, iteration),
        "reference": reference_model(context, iteration),
    }
    if iteration == ALIGN:
        inputs["preferences"] = str(config.align.preferences)
    else:
        inputs["pairs"] = context.run.iteration(iteration) / "pairs"
    for key in ("ds_config", "reference_ds_config"):
        if getattr(train, key).endswith(".json"):
            inputs[key] = getattr(train, key)
    name = "align" if iteration == ALIGN else "train"
    own = {"seed": config.seed, "model.dtype": config.model.dtype}
    return Artifact(context.run.iteration(iteration) / "model", name, settings(train, name) | own, inputs)


def section(context: Context, iteration: int) -> TrainConfig:
    """The settings of an iteration's training; iteration 0 is the align stage."""
    return context.config.align if iteration == ALIGN else context.config.train


def start_model(context: Context, iteration: int) -> str:
    """The model that training starts from: pi_I for the align stage, else pi^(t-1)."""
    return context.model(iteration - 1)


def reference_model(context: Context, iteration: int) -> str:
    """The frozen DPO reference."""
    if section(context, iteration).reference == "initial":
        return context.model(-1)
    return start_model(context, iteration)


def load_pairs(context: Context, iteration: int) -> tuple[list[TrainingPair], Counter[str]]:
    """The training pairs as token ids, and how many were left out, by reason.

    Raises:
        UserError: the pairs are not finished, or none fits `max_length`.
    """
    if iteration == ALIGN:
        rows = [
            (key, ENGLISH, prompt, chosen, rejected)
            for key, prompt, chosen, rejected in load_preferences(str(context.config.align.preferences))
        ]
    else:
        require(pairs.artifact(context, iteration), f"xlr pair {context.run.path} --iteration {iteration}")
        file = context.run.iteration(iteration) / "pairs" / "pairs.parquet"
        rows = [
            (pair.id, pair.lang, pair.prompt, pair.chosen[0]["content"], pair.rejected[0]["content"])
            for pair in read_rows(file, Pair)
        ]
    limit = section(context, iteration).max_length
    encoder, kept, dropped = context.encoder, [], Counter[str]()
    for key, lang, prompt, chosen, rejected in rows:
        example = Example(encoder.prompt_of(prompt), (encoder.response(chosen), encoder.response(rejected)))
        if len(example.prompt) + max(map(len, example.responses)) > limit:
            dropped[f"{lang} longer than max_length={limit}"] += 1
        else:
            kept.append(TrainingPair(key, lang, example))
    if not kept:
        raise UserError(f"iteration {iteration}: every pair is longer than max_length={limit} tokens; raise it")
    return kept, dropped


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Train in processes of this machine, one a GPU.

    Raises:
        UserError: bad input.
        RuntimeError: a process failed.
    """
    context.require_model(iteration - 1)
    start, reference = start_model(context, iteration), reference_model(context, iteration)
    require_same_tokenizer(load_tokenizer(start), load_tokenizer(reference), start, reference)
    load_pairs(context, iteration)  # bad input shows here, before processes start
    command = ["align"] if iteration == ALIGN else ["train", "--iteration", str(iteration)]
    processes = section(context, iteration).processes or _devices()
    log = context.run.log(command[0], iteration)
    launch.spawn([command[0], str(context.run.path), *command[1:]], processes, log)
    return dict(read_json(manifest_path(artifact(context, iteration).folder))["facts"])


def join(context: Context, iteration: int, ranks: Ranks) -> None:
    """Train as one of the ranks that a launcher or srun started."""
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed speaks on standard output, which is for the user
        from xlr import trainer

    if artifact(context, iteration).manifest() is None:
        trainer.train(context, iteration, ranks)


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
