"""The frozen reference's log-probabilities of all training pairs, computed once and before training
(`train.reference_mode: cached`), so that the trainer needs neither the reference's memory nor its time.

Reads the pairs and the reference's weights; writes `RUN/iter{t}/reference/*.parquet`. Run alone with
`xlr reference RUN --iteration t`. Each row carries a key made of the weights' digest, the token ids and the
precision; the trainer makes the same key from what it holds, so a stale cache is refused and never used.
"""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from xlr.data.encoding import load_tokenizer, require_same_tokenizer
from xlr.errors import UserError
from xlr.maths.batching import token_budget_batches
from xlr.model.layout import batch_shape
from xlr.records import ReferenceLogps
from xlr.run.artifact import Artifact, atomic_path, fingerprint, read_rows, sha256, write_shards
from xlr.run.context import Context, Work, require, resumable
from xlr.training.inputs import TrainingPair, load_pairs, reference_model, section, training_inputs


def artifact(context: Context, iteration: int) -> Artifact:
    """The reference log-probabilities of one iteration and what decides them."""
    train = section(context, iteration)
    own = {
        "model.dtype": context.config.model.dtype,
        "score.batch_tokens": context.config.score.batch_tokens,  # how the work is cut into pieces
        "max_length": train.max_length,
    }
    inputs = {"reference": reference_model(context, iteration), **training_inputs(context, iteration)}
    return Artifact(context.run.iteration(iteration) / "reference", "reference", own, inputs)


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Compute the log-probabilities with the Ray workers that also score responses."""
    target = artifact(context, iteration)
    training_pairs, dropped = load_pairs(context, iteration)
    context.require_model(iteration - 1)
    model = reference_model(context, iteration)
    if model != context.encoder.name:
        require_same_tokenizer(context.encoder.tokenizer, load_tokenizer(model), context.encoder.name, model)
    examples = [pair.example for pair in training_pairs]
    lengths, rows = batch_shape(examples, context.config.model.attn_implementation)
    batches = token_budget_batches(lengths, context.config.score.batch_tokens, rows)
    tasks = [(model, [examples[i] for i in batch]) for batch in batches]
    digest = fingerprint(model)

    def to_rows(number: int, result: tuple[str, list[float]]) -> list[ReferenceLogps]:
        precision, logps = result
        pairs = [training_pairs[i] for i in batches[number]]
        return [
            ReferenceLogps(pair.id, pair.lang, key(digest, precision, pair), chosen, rejected)
            for pair, chosen, rejected in zip(pairs, logps[0::2], logps[1::2], strict=True)
        ]

    label = f"reference iteration {iteration}"
    work = Work(
        "reference_logps",
        tasks,
        [Counter(training_pairs[i].lang for i in batch) for batch in batches],
        ReferenceLogps,
        to_rows,
        lambda number, _: sum(len(response) for i in batches[number] for response in examples[i].responses),
    )
    flat = resumable(context, target, "parts", work, label, "pairs")
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_shards(folder, "logps", ReferenceLogps, flat)
    facts = {"reference": model, "dropped": dict(dropped)}
    target.finish(len(flat), facts, context.clock)
    target.remove_pieces()
    return facts


def key(weights_digest: str, precision: str, pair: TrainingPair) -> str:
    """What a pair's reference log-probabilities depend on, as a digest."""
    return sha256(json.dumps([weights_digest, precision, pair.example.prompt, pair.example.responses]))


def load(
    context: Context, iteration: int, precision: str, training_pairs: Sequence[TrainingPair]
) -> dict[TrainingPair, tuple[float, float]]:
    """The cached log-probabilities of chosen and rejected of each pair, in nats.

    Raises:
        UserError: the cache is missing, or was made for other weights, tokens or precision.
    """
    target = artifact(context, iteration)
    command = f"xlr reference {context.run.path} --iteration {iteration}"
    require(target, command)
    digest = fingerprint(reference_model(context, iteration))
    cached = {row.key: (row.chosen_logp, row.rejected_logp) for row in read_rows(target.folder, ReferenceLogps)}
    found = {}
    for pair in training_pairs:
        logps = cached.get(key(digest, precision, pair))
        if logps is None:
            raise UserError(
                f"{target.folder}: holds no log-probabilities of the pair {pair.lang} {pair.id} for these weights and "
                f"tokens in {precision}: it was made with another reference, tokenizer or precision; delete "
                f"{target.folder} and run `{command}`"
            )
        found[pair] = logps
    return found
