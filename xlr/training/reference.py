"""Computes the reference's log-probabilities of all pairs before training (`train.reference_mode: cached`).

The trainer then needs no reference model in memory. Reads the pairs and the reference's weights; writes
`RUN/iter{t}/reference/*.parquet`. Run alone with `xlr reference RUN --iteration t`. Each row has a key: a digest of
weights, token ids and precision. The trainer looks rows up by this key, so it never uses a stale row.
"""

import json
from collections.abc import Sequence

from xlr.chat.format import chat_settings
from xlr.errors import UserError
from xlr.records import START, ReferenceLogps, Scored
from xlr.run.artifact import Artifact, fingerprint
from xlr.run.context import Context, require
from xlr.run.files import atomic_path, sha256
from xlr.run.manifests import rows_of
from xlr.run.rows import require_each_once, write_shards
from xlr.settings.config import Config
from xlr.training.facts import ReferenceFacts
from xlr.training.inputs import Training, TrainingPair
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.shards import whole


def iterations(config: Config) -> list[int]:
    """The iterations whose training reads cached log-probabilities."""
    aligning = config.model.aligned is None and config.align.used_reference == "cached"
    training = config.train.used_reference == "cached"
    return [START] * aligning + config.trained_iterations * training


def artifact(context: Context, iteration: int) -> Artifact:
    """The reference log-probabilities of one iteration, with the settings and inputs that decide them."""
    training = Training(context, iteration)
    own = {
        "model.dtype": context.config.model.dtype,
        "score.batch_tokens": context.config.score.batch_tokens,
        "max_length": training.config.max_length,
        **chat_settings(context.config.model),
    }
    if training.replayed:
        own["train.replay"] = training.config.replay
    if training.config.replay_english and iteration != START:
        own["train.replay_english"] = training.config.replay_english
    inputs = {"reference": training.reference, **training.sources}
    run = context.run
    return Artifact(run.path, run.iteration(iteration) / "reference", "reference", own, inputs)


def check(context: Context) -> None:
    """Checks nothing: the train stage's check covers it."""


def make(context: Context, iteration: int) -> ReferenceFacts:
    """Compute the log-probabilities with the Ray workers that also score responses.

    Raises:
        UserError: bad input, or the starting model is not finished.
    """
    target, training = artifact(context, iteration), Training(context, iteration)
    pairs, model = training.pairs, training.reference
    context.require_model(iteration - 1)
    context.require_same_tokenizer(model)
    dtype = context.config.model.dtype
    weights, precision = fingerprint(model), context.pool.precision(dtype)

    def to_rows(item: int, scored: Scored) -> list[ReferenceLogps]:
        pair, ((chosen,), (rejected,)) = pairs[item], scored.logps
        return [ReferenceLogps(pair.id, pair.lang, row_key(weights, precision, pair), chosen, rejected)]

    keys = [[(pair.lang, pair.id)] for pair in pairs]
    rows = resumable_logps(
        context,
        target,
        "parts",
        [model],
        dtype,
        ReferenceLogps,
        whole(Scoring([pair.example for pair in pairs], keys, to_rows), keys),
        f"reference iteration {iteration}",
        "pairs",
    ).rows()
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        write_shards(folder, "logps", ReferenceLogps, rows)
        require_each_once(folder, [(pair.lang, pair.id) for pair in pairs], ("lang", "id"))
    facts: ReferenceFacts = {"reference": model, "dropped": training.dropped.counts()}
    target.finish(len(rows), facts, context.clock)
    target.remove_pieces()
    return facts


def row_key(weights: str, precision: str, pair: TrainingPair) -> str:
    """A digest of everything that a pair's reference log-probabilities depend on.

    Args:
        weights: fingerprint of the reference model.
        precision: float32 or bfloat16.
    """
    return sha256(json.dumps([weights, f"torch.{precision}", pair.example.prompt, pair.example.responses]))


def load(training: Training, precision: str, pairs: Sequence[TrainingPair]) -> dict[TrainingPair, tuple[float, float]]:
    """The cached log-probabilities `(chosen, rejected)` of each pair, in nats.

    Raises:
        UserError: the cache is missing, or was made for other weights, tokens or precision.
    """
    target = artifact(training.context, training.iteration)
    command = f"xlr reference {training.context.run.path} --iteration {training.iteration}"
    require(target, command)
    weights = fingerprint(training.reference)
    cached = {row.key: (row.chosen_logp, row.rejected_logp) for row in rows_of(target.folder, ReferenceLogps)}
    found = {}
    for pair in pairs:
        logps = cached.get(row_key(weights, precision, pair))
        if logps is None:
            raise UserError(
                f"{target.folder}: holds no log-probabilities of the pair {pair.lang} {pair.id} for these weights and "
                f"tokens in {precision}: it was made with another reference, tokenizer or precision; delete "
                f"{target.folder} and run `{command}`"
            )
        found[pair] = logps
    return found
