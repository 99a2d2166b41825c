"""Stage 4: full fine-tuning with DPO + NLL; what it makes, and the processes it runs in.

Reads the pairs and the model the iteration starts from; writes `RUN/iter{t}/model` (a Hugging Face folder),
`metrics.jsonl`, `tensorboard` and, on the way, checkpoints. Run alone with `xlr train RUN --iteration t`; the
align stage (`xlr align RUN`) is the same on English preferences, from pi_I to pi^0. The loop is in `trainer`.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

from xlr.config import settings
from xlr.data.encoding import load_tokenizer, require_same_tokenizer
from xlr.run.artifact import Artifact, manifest_path, read_json
from xlr.run.context import Context, require
from xlr.training import launcher as launch
from xlr.training import reference
from xlr.training.inputs import ALIGN, hold_out, load_pairs, reference_model, section, start_model, training_inputs
from xlr.training.launcher import Ranks


def artifact(context: Context, iteration: int) -> Artifact:
    """The model of one iteration and what decides it."""
    config = context.config
    train = section(context, iteration)
    inputs: dict[str, str | Path] = {
        "start": start_model(context, iteration),
        "reference": reference_model(context, iteration),
        **training_inputs(context, iteration),
    }
    if train.reference_mode == "cached":
        inputs["reference cache"] = reference.artifact(context, iteration).folder
    for key in ("ds_config", "reference_ds_config"):
        if getattr(train, key).endswith(".json"):
            inputs[key] = getattr(train, key)
    name = "align" if iteration == ALIGN else "train"
    own = {"seed": config.seed, "model.dtype": config.model.dtype}
    return Artifact(context.run.iteration(iteration) / "model", name, settings(train, name) | own, inputs)


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Train in processes of this machine, one a GPU.

    Raises:
        UserError: bad input.
        Preempted: a signal asked for an end; what was done is saved.
        RuntimeError: a process failed.
    """
    context.require_model(iteration - 1)
    train = section(context, iteration)
    start, reference_name = start_model(context, iteration), reference_model(context, iteration)
    # Bad input shows here, before processes start.
    require_same_tokenizer(load_tokenizer(start), load_tokenizer(reference_name), start, reference_name)
    hold_out(load_pairs(context, iteration)[0], train.eval_pairs, context.config.seed)
    if train.reference_mode == "cached":
        command = f"xlr reference {context.run.path} --iteration {iteration}"
        require(reference.artifact(context, iteration), command)
    arguments = ["align"] if iteration == ALIGN else ["train", "--iteration", str(iteration)]
    processes = train.processes or _devices()
    log = context.run.log(arguments[0], iteration)
    launch.spawn([arguments[0], str(context.run.path), *arguments[1:]], processes, log)
    return dict(read_json(manifest_path(artifact(context, iteration).folder))["facts"])


def join(context: Context, iteration: int, ranks: Ranks) -> None:
    """Train as one of the ranks that a launcher or srun started."""
    with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed speaks on standard output, which is for the user
        from xlr.training import loop as trainer

    if artifact(context, iteration).manifest() is None:
        trainer.train(context, iteration, ranks)


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
