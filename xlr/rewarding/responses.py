"""Stage 1: responses sampled from pi^(t-1) to every instruction in its own language.

Reads the prompts and the model; writes `RUN/iter{t}/responses/{lang}-*.parquet`. Run alone with
`xlr generate RUN --iteration t`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

from xlr.config import GenerateConfig, settings
from xlr.data.encoding import ChatEncoder
from xlr.data.prompts import sources
from xlr.records import Prompt, Response, SampleRequest, SampleSettings
from xlr.run.artifact import Artifact, atomic_path, write_shards
from xlr.run.context import Context, Work, resumable


def artifact(context: Context, iteration: int) -> Artifact:
    """The responses of one iteration and what decides them."""
    config = context.config
    return Artifact(
        context.run.iteration(iteration) / "responses",
        "generate",
        settings(config.generate, "generate")
        | {
            "seed": config.seed,
            "languages": list(config.languages),
            "prompts.limit": config.prompts.limit,
            "model.dtype": config.model.dtype,
        },
        {"policy": context.model(iteration - 1), **sources(config.prompts, config.languages)},
    )


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Sample `num_samples` responses to every prompt of every language of the run."""
    target = artifact(context, iteration)
    policy = context.require_model(iteration - 1)
    wanted = [
        (prompt, sample)
        for lang in context.config.languages
        for prompt in context.prompts[lang]
        for sample in range(context.config.generate.num_samples)
    ]
    how, encoder = context.config.generate, context.encoder
    rows = sample_responses(context, target, "parts", policy, wanted, how, iteration, "generate", encoder)
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in context.config.languages:
            write_shards(folder, lang, Response, [row for row in rows if row.lang == lang])
    facts = {lang: _facts([row for row in rows if row.lang == lang]) for lang in context.config.languages}
    target.finish(len(rows), facts, context.clock)
    target.remove_pieces()
    return facts


def _facts(rows: Sequence[Response]) -> dict[str, Any]:
    reasons = Counter(row.finish_reason for row in rows)
    return {
        "rows": len(rows),
        "tokens": sum(len(row.token_ids) for row in rows),
        "empty": sum(not row.response.strip() for row in rows),
        **{f"finish_{reason}": count for reason, count in sorted(reasons.items())},
    }


def row_seed(seed: int, iteration: int, lang: str, prompt_id: str, sample: int) -> int:
    """The sampling seed of one response, in [0, 2^63)."""
    key = "\x1f".join(map(str, (seed, iteration, lang, prompt_id, sample)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def sample_responses(
    context: Context,
    target: Artifact,
    parts: str,
    model: str,
    wanted: Sequence[tuple[Prompt, int]],
    how: GenerateConfig,
    iteration: int,
    label: str,
    encoder: ChatEncoder,
) -> list[Response]:
    """Sample one response for every `(prompt, sample)`, in batches planned by prompt length.

    Returns:
        Responses ordered by language as first met, then prompt, then sample.
    """
    with context.clock.measure("tokenise"):
        ids = {prompt: encoder.prompt(prompt.instruction) for prompt in {prompt for prompt, _ in wanted}}
    # Prompts of similar length share a batch: less left padding. The sort is stable, so samples stay together.
    order = sorted(range(len(wanted)), key=lambda i: -len(ids[wanted[i][0]]))
    batches = [order[i : i + how.batch_size] for i in range(0, len(order), how.batch_size)]
    stop_ids = tuple(encoder.stop_ids(generation_eos(model)))
    sampling = SampleSettings(how.temperature, how.top_p, how.top_k, how.max_new_tokens, stop_ids)
    tasks = [
        (
            model,
            [
                SampleRequest(ids[prompt], row_seed(context.config.seed, iteration, prompt.lang, prompt.id, sample))
                for prompt, sample in (wanted[i] for i in batch)
            ],
            sampling,
        )
        for batch in batches
    ]

    def to_rows(number: int, result: list[tuple[list[int], str]]) -> list[Response]:
        return [
            Response(prompt.id, prompt.lang, sample, encoder.decode(token_ids), token_ids, reason)
            for (prompt, sample), (token_ids, reason) in zip((wanted[i] for i in batches[number]), result, strict=True)
        ]

    work = Work(
        "sample",
        tasks,
        [Counter(wanted[i][0].lang for i in batch) for batch in batches],
        Response,
        to_rows,
        lambda _, rows: sum(len(row.token_ids) for row in rows),
    )
    rows = resumable(context, target, parts, work, label, "responses")
    place = dict(zip((i for batch in batches for i in batch), rows, strict=True))
    return [place[index] for index in range(len(wanted))]


def generation_eos(model: str) -> int | list[int] | None:
    """The end tokens of a model's generation config, if it has one."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(model).eos_token_id
    except OSError:
        return None
