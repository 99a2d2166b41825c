"""Stage 1: responses sampled from pi^(t-1) to every instruction in its own language.

Reads the prompts and the model; writes `RUN/iter{t}/responses/{lang}-*.parquet`. Command:
`xlr generate RUN --iteration t`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

from xlr.chat.encoding import ChatEncoder
from xlr.chat.format import chat_settings
from xlr.data.prompts import selection, sources
from xlr.maths.batching import Batch, consecutive
from xlr.records import Prompt, Response, RowKey, SampleRequest, SampleSettings, SampleTask, messages, row_key
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.run.files import atomic_path
from xlr.run.manifests import part_of, read_manifest, verified
from xlr.run.reuse import Kept
from xlr.run.rows import read_keys, read_rows, row_count, write_shard
from xlr.sampling import room, samplingplan
from xlr.sampling.facts import GenerateFacts, ResponseFacts
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.generateconfig import GenerateConfig
from xlr.terminal.console import console
from xlr.work.pieces import Finished, resumable
from xlr.work.shards import Shard, Work, keys_digest, whole

_SHARD_ROWS = 4096
_MANY = 10_000  # responses that vLLM samples some minutes faster than transformers


def iterations(config: Config) -> list[int]:
    """The iterations in which responses are sampled: all but iteration 0."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The responses of one iteration, with the settings and inputs that decide them."""
    config = context.config.at(iteration)
    return Artifact(
        context.run.path,
        context.run.iteration(iteration) / "responses",
        "generate",
        deciding(config.generate, "generate")
        | {
            "seed": config.seed,
            "languages": list(config.trained_languages),
            **selection(config.prompts),
            **deciding(config.prompts.columns, "prompts.columns"),
            "model.dtype": config.model.dtype,
            **chat_settings(config.model),
        },
        {"policy": context.model(iteration - 1), **sources(context.pinned(config.prompts), config.trained_languages)},
        {
            lang: {"policy": context.model(iteration - 1), **sources(context.pinned(config.prompts), [lang])}
            for lang in config.trained_languages
        },
    )


def check(context: Context) -> None:
    """Check early that responses can be sampled.

    Raises:
        UserError: the prompts, the model, its tokenizer or vLLM are not usable, or responses can exceed the model's
            positions.
    """
    from xlr.model.checks import require_model  # imports torch

    require_model(context.encoder.name, context.encoder.tokenizer)
    _require_room(context)
    if context.config.generate.backend == "vllm":
        from xlr.model.vllmsampler import require_installed  # imports all of transformers' models

        require_installed()


def _require_room(context: Context) -> None:
    config = context.config
    prompts = room.named(prompt for lang in config.trained_languages for prompt in context.prompts[lang])
    new_tokens = config.generate.max_new_tokens
    room.require_room(context.encoder, prompts, room.positions_of_run(context), new_tokens, "generate.max_new_tokens")


def make(context: Context, iteration: int) -> GenerateFacts:
    """Sample `num_samples` responses to every prompt in every language of the run."""
    config, target, prompts = context.config.at(iteration), artifact(context, iteration), context.prompts_of(iteration)
    policy, kept = context.require_model(iteration - 1), Kept(target)
    _require_room(context)
    asked = [prompt for lang in config.trained_languages if lang not in kept.languages for prompt in prompts[lang]]
    wanted = samplingplan.Samples(asked, config.generate.num_samples)
    if config.generate.backend == "transformers" and len(wanted) > _MANY and context.pool.on_gpus:
        console.print(
            f"  warning: {len(wanted):,} responses with generate.backend=transformers: on GPUs, vllm is estimated to "
            "take a fourteenth of the time"
        )
    expected = samplingplan.learnt(context.run.iteration(iteration - 1) / "responses", prompts)
    sampling = Sampling(context, policy, config.generate, iteration, context.encoder)
    with context.clock.measure("tokenise"):
        shards = sampling.shards(wanted, expected)
    finished = sampling.compute(target, "parts", shards, "generate")
    counts: dict[str, Counter[str]] = {
        lang: Counter() for lang in config.trained_languages if lang not in kept.languages
    }
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        kept.link_into(folder)
        for shard, items in zip(shards, samplingplan.blocks(wanted, config.generate.batch_size), strict=True):
            table = finished.table(shard.name)
            write_shard(folder / f"{shard.name}.parquet", table, [_key(wanted[item]) for item in items])
            counts[wanted[items.start][0].lang] += count(table)
    sampled = {lang: facts_of(counted) for lang, counted in counts.items()}
    facts: GenerateFacts = {
        lang: sampled[lang] if lang in sampled else kept.facts[lang] for lang in config.trained_languages
    }
    rows = sum(own["rows"] for own in facts.values())
    target.finish(rows, facts, context.clock, {"sampled": sum(own["tokens"] for own in sampled.values())})
    target.remove_pieces()
    return facts


def count(table: Any) -> Counter[str]:
    """Rows, tokens, empty responses and finish reasons of responses in an Arrow table."""
    import pyarrow.compute as pc

    return Counter(
        rows=table.num_rows,
        tokens=pc.sum(pc.list_value_length(table["token_ids"])).as_py() or 0,
        empty=sum(not text.strip() for text in table["response"].to_pylist()),
        **Counter(table["finish_reason"].to_pylist()),
    )


def facts_of(counted: Counter[str]) -> ResponseFacts:
    """The facts of one language, from what `count` counts."""
    facts: ResponseFacts = {"rows": counted["rows"], "tokens": counted["tokens"], "empty": counted["empty"]}
    if counted["length"]:
        facts["finish_length"] = counted["length"]
    if counted["stop"]:
        facts["finish_stop"] = counted["stop"]
    return facts


@dataclass(frozen=True)
class ResponseShard(Shard[Sequence[Response]]):
    """Responses that are scored or translated together. Their plan reads all of them."""

    keys: Callable[[], Sequence[RowKey]] = field(kw_only=True)
    """Reads their keys alone, in the same order: the token ids are nearly all of a file."""


def as_shards(rows: Sequence[Response]) -> list[ResponseShard]:
    """A few responses as one shard; none if there are no rows."""
    keys = [row.key for row in rows]
    return [ResponseShard(**vars(own), keys=lambda: keys) for own in whole(rows, [[key] for key in keys])]


def shards_of(context: Context, iteration: int, langs: Collection[str]) -> list[ResponseShard]:
    """The responses of an iteration in these languages, in shards with all samples of each of their prompts."""
    folder = context.run.iteration(iteration) / "responses"
    manifest = read_manifest(folder)
    assert manifest is not None
    samples = context.config.at(iteration).generate.num_samples
    found: list[ResponseShard] = []
    numbers: Counter[str] = Counter()
    for name, path in verified(folder).items():
        lang = part_of(path.stem)
        count = row_count(path) if lang in langs else 0
        for prompts in consecutive(range(-(-count // samples)), max(_SHARD_ROWS // samples, 1)):
            rows = slice(prompts[0] * samples, min((prompts[-1] + 1) * samples, count))
            digest = f"{manifest['files'][name][1]} {rows.start} {rows.stop}"
            totals = Counter({lang: rows.stop - rows.start})
            plan, keys = partial(read_rows, path, Response, rows), partial(read_keys, path, rows)
            found.append(ResponseShard(f"{lang}-{numbers[lang]:05d}", digest, totals, plan, keys=keys))
            numbers[lang] += 1
    return found


def row_seed(seed: int, iteration: int, lang: str, prompt_id: str, sample: int) -> int:
    """The sampling seed of one response, in [0, 2^63)."""
    key = "\x1f".join(map(str, (seed, iteration, lang, prompt_id, sample)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Sampling:
    """Sampling from one model."""

    context: Context
    model: str
    generate: GenerateConfig
    iteration: int
    """Part of each response's seed."""
    encoder: ChatEncoder
    primer: str = ""
    """What every response is made to begin with. It is not part of the response."""

    def shards(self, wanted: samplingplan.Wanted, expected: Mapping[Prompt, float]) -> list[Shard[Work[Response]]]:
        """Shards with one response for every `(prompt, sample)`, in the order of `wanted`, named `{lang}-{number}`.

        Args:
            expected: how long responses to each prompt are expected to be, in tokens; empty if nothing is known.
        """
        planned = self._planned(wanted, expected)
        ranks = {items: rank for rank, items in enumerate(planned)}
        numbers: Counter[str] = Counter()
        found = []
        for items in sorted(planned, key=lambda own: own.start):
            lang = wanted[items.start][0].lang
            digest = keys_digest([_key(wanted[item])] for item in items)
            plan = partial(self._work, wanted, planned[items])
            name = f"{lang}-{numbers[lang]:05d}"
            found.append(Shard(name, digest, Counter({lang: len(items)}), plan, ranks[items]))
            numbers[lang] += 1
        return found

    def work(self, wanted: samplingplan.Wanted) -> Work[Response]:
        """The batches of one response for every `(prompt, sample)`."""
        return self._work(wanted, [batch for own in self._planned(wanted, {}).values() for batch in own])

    def compute(
        self, target: Artifact, pieces: str, shards: Sequence[Shard[Work[Response]]], label: str
    ) -> Finished[Response]:
        """Sample the shards, in pieces that resume; see `resumable`."""
        like = SampleTask(self.model, (), self._settings)
        return resumable(self.context, target, pieces, Response, like, shards, label, "responses")

    @cached_property
    def _settings(self) -> SampleSettings:
        return sample_settings(self.generate, self.encoder, self.model)

    def _planned(self, wanted: samplingplan.Wanted, expected: Mapping[Prompt, float]) -> dict[range, list[Batch]]:
        lengths = cache(lambda prompt: len(self._prompt_ids(prompt)))
        return samplingplan.plan(wanted, self.generate, lengths, expected)

    def _prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        return self.encoder.prompt_of(messages(prompt.conversation)) + self.encoder.beginning(self.primer)

    def _work(self, wanted: samplingplan.Wanted, batches: Sequence[Batch]) -> Work[Response]:
        seed = self.context.config.seed

        def task(batch: Batch) -> SampleTask:
            asked = [wanted[item] for item in batch]
            # Encoded here and not for all prompts at once: the ids of 150,000 prompts take much memory.
            ids = {prompt: self._prompt_ids(prompt) for prompt in {prompt for prompt, _ in asked}}
            seeds = (row_seed(seed, self.iteration, prompt.lang, prompt.id, sample) for prompt, sample in asked)
            requests = map(SampleRequest, (ids[prompt] for prompt, _ in asked), seeds)
            return SampleTask(self.model, tuple(requests), self._settings)

        def to_rows(batch: Batch, result: Sequence[tuple[list[int], str]]) -> list[Response]:
            asked = (wanted[item] for item in batch)
            return [
                Response(prompt.id, prompt.lang, sample, self.encoder.decode(token_ids), token_ids, reason)
                for (prompt, sample), (token_ids, reason) in zip(asked, result, strict=True)
            ]

        return Work(
            lambda item: [_key(wanted[item])],
            batches,
            task,
            to_rows,
            lambda _, rows: sum(len(row.token_ids) for row in rows),
        )


def _key(asked: tuple[Prompt, int]) -> RowKey:
    prompt, sample = asked
    return row_key(prompt.lang, prompt.id, sample)


def sample_settings(generate: GenerateConfig, encoder: ChatEncoder, model: str) -> SampleSettings:
    """How a model's responses are sampled, with the tokens that end them."""
    from xlr.model.checks import generation_eos  # imports torch

    stop_ids = tuple(encoder.stop_ids(generation_eos(model)))
    return SampleSettings(generate.temperature, generate.top_p, generate.top_k, generate.max_new_tokens, stop_ids)
