"""Stage 4: full fine-tuning with DPO + NLL. Defines the artefact and starts the training processes.

Reads the pairs and the model that the iteration starts from; writes `RUN/iter{t}/model` (a Hugging Face folder),
`metrics.jsonl`, `tensorboard` and, during training, checkpoints. Run alone with `xlr train RUN --iteration t`. The
training loop is in `loop`.
"""

import contextlib
import sys

from xlr.chat.format import chat_settings
from xlr.cluster import launcher
from xlr.cluster.ranks import Ranks
from xlr.data.preferencerows import path_of
from xlr.data.preferences import load_preferences
from xlr.foreign.modelfiles import load_config
from xlr.foreign.shapes import read_shape
from xlr.model.quiet import quiet
from xlr.records import INITIAL, START
from xlr.run.artifact import Artifact, Source
from xlr.run.context import Context, require
from xlr.run.manifests import read_manifest
from xlr.sampling import room
from xlr.settings.config import Config
from xlr.training import reference
from xlr.training.facts import TrainingFacts
from xlr.training.inputs import Training
from xlr.zero.dsconfig import policy_config, reference_config


def iterations(config: Config) -> list[int]:
    """Every iteration but 0, whose model is given or trained by the align stage."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The model of one iteration, with the settings and inputs that decide it."""
    training = Training(context, iteration)
    inputs: dict[str, Source] = {"start": training.start, **training.sources}
    if training.config.used_reference is not None:
        inputs["reference"] = training.reference
    if training.config.used_reference == "cached":
        inputs["reference cache"] = reference.artifact(context, iteration).folder
    for key in ("ds_config", "reference_ds_config"):
        if getattr(training.config, key).endswith(".json"):
            inputs[key] = getattr(training.config, key)
    model = context.config.model
    own = {"seed": context.config.seed, "model.dtype": model.dtype, **chat_settings(model)}
    run = context.run
    return Artifact(run.path, run.iteration(iteration) / "model", training.stage, training.settings | own, inputs)


def check(context: Context) -> None:
    """Check before the run starts that its trainings can start.

    Raises:
        UserError: a DeepSpeed JSON or the preferences are not usable, the model has no load-balancing loss that is
            asked for, or no formula by which micro-batches are chosen, or pairs can exceed its positions.
    """
    from xlr.model.experts import aux_loss_coef  # imports torch

    config, fewest = context.config, room.positions_of_run(context)
    initial = load_config(context.model(INITIAL))
    hidden_size = initial.get_text_config().hidden_size
    for stage, train in (("align", config.align), ("train", config.train)):
        aux_loss_coef(initial, train.router_aux_loss_coef, f"{stage}.router_aux_loss_coef")
        policy_config(train, config.model.dtype == "bfloat16", hidden_size)
        reference_config(train, config.model.dtype == "bfloat16", hidden_size)
        if train.micro_batch_tokens == "auto":
            read_shape(context.model(INITIAL))
    if given := context.pinned(config.align.preferences):
        known, length = load_preferences(given, config.model.system_prompt), config.align.max_length
        room.require_preferences(context.encoder, path_of(given), known, fewest, "align.max_length", length)
    prompts = room.named(prompt for lang in config.trained_languages for prompt in context.prompts[lang])
    new_tokens, length = config.generate.max_new_tokens, config.train.max_length
    room.require_max_length(context.encoder, prompts, fewest, new_tokens, "train.max_length", length)


def make(context: Context, iteration: int) -> TrainingFacts:
    """Train in processes on this machine, by default one for each GPU.

    Raises:
        UserError: bad input.
        Preempted: a signal asked the training to end; a checkpoint was saved.
        RuntimeError: a process failed.
    """
    from xlr.model.experts import aux_loss_coef

    training = Training(context, iteration)
    context.require_model(iteration - 1)
    # Find bad input here, before processes start.
    start = training.start
    coefficient = training.config.router_aux_loss_coef
    aux_loss_coef(load_config(start), coefficient, f"{training.stage}.router_aux_loss_coef")
    context.require_same_tokenizer(start)
    if training.config.used_reference is not None:
        context.require_same_tokenizer(training.reference)
    _ = training.split
    lengths = ((f"pair {pair.lang} {pair.id!r}", pair.length) for pair in training.pairs)
    room.require_sequences(context, lengths, f"{training.stage}.max_length")
    _require_reference(training)
    arguments = [training.stage, str(context.run.path)]
    if iteration != START:
        arguments += ["--iteration", str(iteration)]
    processes = training.config.processes or _devices()
    launcher.spawn(arguments, processes, context.run.log(training.stage, iteration))
    manifest = read_manifest(artifact(context, iteration).folder)
    assert manifest is not None  # the ranks wrote it
    facts: TrainingFacts = manifest["facts"]
    return facts


def join(context: Context, iteration: int, ranks: Ranks) -> None:
    """Train as one of the ranks that a launcher or srun started.

    The first rank writes the known messages of libraries to a debug log.
    """
    training, target = Training(context, iteration), artifact(context, iteration)
    log = context.run.log(training.stage, iteration).with_suffix(".debug.log")
    with quiet(log if ranks.rank == 0 else None):
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints to standard output, which is reserved for xlr
            from xlr.training import loop

        if target.manifest() is None:
            _require_reference(training)
            loop.train(training, target, ranks)


def _require_reference(training: Training) -> None:
    """Check, before checkpoints are claimed for it, that a cached reference is finished.

    Raises:
        UserError: it is not.
    """
    if training.config.used_reference == "cached":
        command = f"xlr reference {training.context.run.path} --iteration {training.iteration}"
        require(reference.artifact(training.context, training.iteration), command)


def _devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
