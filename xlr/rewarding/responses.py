"""Stage 1: responses sampled from pi^(t-1) to every instruction in its own language.

Reads the prompts and the model; writes `RUN/iter{t}/responses/{lang}-*.parquet`. Command:
`xlr generate RUN --iteration t`.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

from xlr.data.encoding import ChatEncoder
from xlr.data.prompts import sources
from xlr.maths.batching import Batch
from xlr.records import Prompt, Response, SampleRequest, SampleSettings, SampleTask, row_key
from xlr.rewarding import room
from xlr.rewarding.facts import GenerateFacts, ResponseFacts
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import atomic_path
from xlr.run.rows import require_each_once, write_shards
from xlr.run.work import Work, resumable
from xlr.settings.config import Config, GenerateConfig, settings


def iterations(config: Config) -> list[int]:
    """The iterations in which responses are sampled: all but iteration 0."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The responses of one iteration, with the settings and inputs that decide them."""
    config = context.config
    return Artifact(
        context.run.path,
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


def check(context: Context) -> None:
    """Check early that responses can be sampled.

    Raises:
        UserError: the prompts, the model, its tokenizer or vLLM are not usable, or responses can exceed the model's
            positions.
    """
    from xlr.model.checks import require_model  # imports torch
    from xlr.model.vllmsampler import require_installed

    require_model(context.encoder.name, context.encoder.tokenizer)
    _require_room(context)
    if context.config.generate.backend == "vllm":
        require_installed()


def _require_room(context: Context) -> None:
    config = context.config
    prompts = room.named(prompt for lang in config.languages for prompt in context.prompts[lang])
    new_tokens = config.generate.max_new_tokens
    room.require_room(context.encoder, prompts, room.positions_of_run(context), new_tokens, "generate.max_new_tokens")


def make(context: Context, iteration: int) -> GenerateFacts:
    """Sample `num_samples` responses to every prompt in every language of the run."""
    config, target = context.config, artifact(context, iteration)
    policy = context.require_model(iteration - 1)
    _require_room(context)
    wanted = [
        (prompt, sample)
        for lang in config.languages
        for prompt in context.prompts[lang]
        for sample in range(config.generate.num_samples)
    ]
    rows = sample_responses(
        context, target, "parts", policy, wanted, config.generate, iteration, "generate", context.encoder
    )
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in config.languages:
            write_shards(folder, lang, Response, [row for row in rows if row.lang == lang])
        require_each_once(folder, [row_key(prompt.lang, prompt.id, sample) for prompt, sample in wanted])
    facts = {lang: _facts([row for row in rows if row.lang == lang]) for lang in config.languages}
    tokens = {"sampled": sum(own["tokens"] for own in facts.values())}
    target.finish(len(rows), facts, context.clock, tokens)
    target.remove_pieces()
    return facts


def _facts(rows: Sequence[Response]) -> ResponseFacts:
    facts: ResponseFacts = {
        "rows": len(rows),
        "tokens": sum(len(row.token_ids) for row in rows),
        "empty": sum(not row.response.strip() for row in rows),
    }
    reasons = Counter(row.finish_reason for row in rows)
    if reasons["length"]:
        facts["finish_length"] = reasons["length"]
    if reasons["stop"]:
        facts["finish_stop"] = reasons["stop"]
    return facts


def row_seed(seed: int, iteration: int, lang: str, prompt_id: str, sample: int) -> int:
    """The sampling seed of one response, in [0, 2^63)."""
    key = "\x1f".join(map(str, (seed, iteration, lang, prompt_id, sample)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def sample_responses(
    context: Context,
    target: Artifact,
    pieces: str,
    model: str,
    wanted: Sequence[tuple[Prompt, int]],
    generate: GenerateConfig,
    iteration: int,
    label: str,
    encoder: ChatEncoder,
) -> list[Response]:
    """Sample one response for every `(prompt, sample)`, in batches of prompts of similar length.

    Returns:
        Responses in the order of `wanted`.
    """
    with context.clock.measure("tokenise"):
        ids = {prompt: encoder.prompt(prompt.instruction) for prompt in {prompt for prompt, _ in wanted}}
    requests = [
        SampleRequest(ids[prompt], row_seed(context.config.seed, iteration, prompt.lang, prompt.id, sample))
        for prompt, sample in wanted
    ]
    # Prompts of similar length share a batch: less left padding. A stable sort keeps a prompt's samples together.
    order = sorted(range(len(wanted)), key=lambda item: -len(requests[item].prompt))
    batches = [order[start : start + generate.batch_size] for start in range(0, len(order), generate.batch_size)]
    how = sample_settings(generate, encoder, model)

    def to_rows(batch: Batch, result: Sequence[tuple[list[int], str]]) -> list[Response]:
        asked = (wanted[item] for item in batch)
        return [
            Response(prompt.id, prompt.lang, sample, encoder.decode(token_ids), token_ids, reason)
            for (prompt, sample), (token_ids, reason) in zip(asked, result, strict=True)
        ]

    work = Work(
        [[row_key(prompt.lang, prompt.id, sample)] for prompt, sample in wanted],
        batches,
        [SampleTask(model, tuple(requests[item] for item in batch), how) for batch in batches],
        Response,
        to_rows,
        lambda _, rows: sum(len(row.token_ids) for row in rows),
    )
    return resumable(context, target, pieces, work, label, "responses")


def sample_settings(generate: GenerateConfig, encoder: ChatEncoder, model: str) -> SampleSettings:
    """How a model's responses are sampled, with the tokens that end them."""
    from xlr.model.checks import generation_eos  # imports torch

    stop_ids = tuple(encoder.stop_ids(generation_eos(model)))
    return SampleSettings(generate.temperature, generate.top_p, generate.top_k, generate.max_new_tokens, stop_ids)
