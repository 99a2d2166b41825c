"""What a training reads: its settings, the models it starts from, and its pairs as token ids."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from xlr.config import TrainConfig
from xlr.data.preferences import load_preferences
from xlr.errors import UserError
from xlr.languages import ENGLISH
from xlr.records import Example, Pair
from xlr.rewarding import pairs
from xlr.run.artifact import read_rows
from xlr.run.context import Context, require

ALIGN = 0  # the iteration that makes pi^0


@dataclass(frozen=True)
class TrainingPair:
    """A pair as token ids: the prompt once, then chosen and rejected."""

    id: str
    lang: str
    example: Example


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


def training_inputs(context: Context, iteration: int) -> dict[str, str | Path]:
    """The files that the pairs come from."""
    if iteration == ALIGN:
        return {"preferences": str(context.config.align.preferences)}
    return {"pairs": context.run.iteration(iteration) / "pairs"}


def load_pairs(context: Context, iteration: int) -> tuple[list[TrainingPair], Counter[str]]:
    """The training pairs as token ids, and how many were left out, by reason.

    Raises:
        UserError: the pairs are not finished, or none fits `max_length`.
    """
    if iteration == ALIGN:
        rows = [
            (one.id, ENGLISH, one.prompt, one.chosen, one.rejected)
            for one in load_preferences(str(context.config.align.preferences))
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


def hold_out(
    training_pairs: Sequence[TrainingPair], per_language: int, seed: int
) -> tuple[list[TrainingPair], list[TrainingPair]]:
    """Keep some pairs of every language out of training; a function of the pairs and the seed alone.

    Returns:
        `(train, held_out)`, each in the order of the input.

    Raises:
        UserError: a language would have nothing left to train on.
    """
    held: set[int] = set()
    for lang in dict.fromkeys(pair.lang for pair in training_pairs):
        own = [index for index, pair in enumerate(training_pairs) if pair.lang == lang]
        if per_language >= len(own):
            raise UserError(
                f"eval_pairs: {per_language} of the {len(own)} pairs in {lang} are to be held out, which leaves none "
                "to train on; lower it"
            )
        held.update(Random(f"{seed} {lang}").sample(own, per_language))
    train = [pair for index, pair in enumerate(training_pairs) if index not in held]
    return train, [training_pairs[index] for index in sorted(held)]
