"""Stage 2: the implicit reward of every response, `log pi^(t-1)(y|G(x)) - log pi_ref(y|G(x))`.

Reads the responses and the two models; writes `RUN/iter{t}/scores/{lang}-*.parquet`. Command:
`xlr score RUN --iteration t`.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xlr.chat.encoding import load_tokenizer
from xlr.chat.format import chat_settings
from xlr.errors import UserError
from xlr.foreign.modelfiles import load_config
from xlr.languages import ENGLISH
from xlr.maths.rewards import TRANSLATE_INSTRUCTION
from xlr.model.fused import require_usable
from xlr.records import INITIAL, Conversation, DType, Prompt, Response, Score, messages, row_key
from xlr.rewarding import responses, room
from xlr.rewarding.candidates import Candidate, candidate, conversations, limit, score_shards, scoring_conversation
from xlr.rewarding.facts import ScoredProbe, ScoreFacts
from xlr.rewarding.scoretotals import ScoreTotals
from xlr.run.artifact import Artifact, Part
from xlr.run.context import Context, require
from xlr.run.dropped import Dropped
from xlr.run.files import atomic_path, write_json
from xlr.run.manifests import part_of, read_manifest, verified
from xlr.run.reuse import Kept
from xlr.run.rows import read_rows, records, row_count, write_shard
from xlr.settings.config import Config, Reward, deciding
from xlr.settings.languagenames import language_names
from xlr.terminal.console import console
from xlr.work.pieces import Finished
from xlr.work.shards import Shard, Work, whole

PROBES = "_probes.json"  # pandas and datasets read a folder without files whose names begin so
_SHARD_ROWS = 4096
_PROBES = 4  # scored sequences that training compares with its own log-probabilities

FORMULA = "log policy(y | x') - log reference(y | x'), summed over the response's tokens and its terminator"


def iterations(config: Config) -> list[int]:
    """The iterations in which responses are scored: all but iteration 0."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The scores of one iteration, with the settings and inputs that decide them."""
    config, run, sampled = (
        context.config.at(iteration),
        context.run.path,
        context.run.iteration(iteration) / "responses",
    )
    models = {"policy": context.model(iteration - 1), "reference": context.model(context.reward_reference(iteration))}
    langs = _scored_languages(config)
    return Artifact(
        run,
        context.run.iteration(iteration) / "scores",
        "score",
        deciding(config.score, "score") | {"model.dtype": config.model.dtype, **chat_settings(config.model)},
        {"responses": sampled, **models, **language_names(config, langs)},
        {lang: {"responses": Part(run, sampled, lang), **models, **language_names(config, [lang])} for lang in langs},
    )


def check(context: Context) -> None:
    """Check early that policy and reference can be compared.

    Raises:
        UserError: pi^0 and pi_I do not share a tokenizer, pi_I is not usable, or sequences can exceed their positions.
    """
    from xlr.model.checks import require_attention, require_model  # imports torch

    config, initial = context.config, context.model(INITIAL)
    require_model(initial, load_tokenizer(initial))
    require_usable(config.model.fused_operations, load_config(initial))
    require_attention(initial, config.model.attn_implementation)
    if config.model.aligned:
        context.require_same_tokenizer(initial)
    prompts = [prompt for lang in config.trained_languages for prompt in context.prompts[lang]]
    require_scorable(context, config.score.reward, prompts, context.prompts[ENGLISH], config.generate.max_new_tokens)
    if config.score.reward == "translate":
        _require_translatable(context)


def _require_translatable(context: Context) -> None:
    """Check that a response and its translation fit the policy's positions.

    Raises:
        UserError: they may not.
    """
    positions, longest = room.positions_of_run(context), context.config.generate.max_new_tokens
    for lang in context.config.trained_languages:
        asked = TRANSLATE_INSTRUCTION.format(language=context.config.language_name(lang), text="")
        tokens = len(context.encoder.prompt(asked))
        if positions is not None and tokens + 2 * longest > positions:
            raise UserError(
                f"generate.max_new_tokens={longest}: with score.reward=translate, a response and its translation can "
                f"exceed the {positions:,} positions of {context.encoder.name} (max_position_embeddings in its "
                f"config.json); set it to {max((positions - tokens) // 2, 1)} or less, or choose another score.reward"
            )


def require_scorable(
    context: Context, mode: Reward, prompts: Iterable[Prompt], english: Iterable[Prompt], new_tokens: int
) -> None:
    """Check that prompts with responses fit the models' positions when they are scored, or are left out.

    Args:
        english: the same prompts in English.
        new_tokens: the longest response, in tokens.

    Raises:
        UserError: a longer sequence would be scored; names its prompt.
    """
    of_english, name = {prompt.id: prompt for prompt in english}, context.config.language_name
    asked = [
        (
            f"{prompt.lang} {prompt.id!r}",
            scoring_conversation(mode, prompt, of_english[prompt.id], name(prompt.lang)),
        )
        for prompt in prompts
    ]
    positions, length = room.positions_of_run(context), context.config.score.max_length
    room.require_max_length(context.encoder, asked, positions, new_tokens, "score.max_length", length)


def make(context: Context, iteration: int) -> ScoreFacts:
    """Score every response that is neither empty nor too long."""
    run, mode = context.run, context.config.score.reward
    require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    kept = Kept(target)
    langs = [lang for lang in _scored_languages(context.config) if lang not in kept.languages]
    shards = _response_shards(context, iteration, langs)
    scored = score_in_mode(context, target, mode, shards, iteration, f"score iteration {iteration}")
    dropped, of_all = Dropped(), ScoreTotals()
    of_language = {lang: ScoreTotals() for lang in langs}
    middle = {file.stem: _middle(read_rows(file, Score)) for file in kept.files}
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        kept.link_into(folder)
        for name, rows, table in scored.by_shard(dropped):
            write_shard(folder / f"{name}.parquet", table, [row.key for row in rows if row.key not in dropped.keys])
            scores = records(table, Score)
            for totals in (of_all, of_language[part_of(name)]):
                totals.add(scores)
            middle[name] = _middle(scores)
        probed = [score for name in sorted(middle) for score in middle[name]]
        write_json(folder / PROBES, _probes(context, mode, probed))
    warning = of_all.noise_warning()
    if warning and context.pool.precision(context.config.scoring_dtype) == "bfloat16":
        console.print(f"  warning: {warning}")
    facts: ScoreFacts = {
        "formula": FORMULA,
        "reward": mode,
        "dropped": dropped.counts(),
        "languages": {lang: totals.facts() for lang, totals in of_language.items()},
    }
    for lang in kept.languages:
        facts["languages"][lang] = kept.facts["languages"][lang]
        if lang in kept.facts["dropped"]:
            facts["dropped"][lang] = kept.facts["dropped"][lang]
    count = sum(own["rows"] for own in facts["languages"].values())
    target.finish(count, facts, context.clock, {"scored": of_all.tokens})
    target.remove_pieces()
    return facts


def _scored_languages(config: Config) -> list[str]:
    return [lang for lang in config.trained_languages if config.score.reward != "translate" or lang != ENGLISH]


def _response_shards(context: Context, iteration: int, langs: Collection[str]) -> list[Shard[Sequence[Response]]]:
    """The responses of an iteration in these languages, in shards with all samples of each of their prompts."""
    folder = context.run.iteration(iteration) / "responses"
    manifest = read_manifest(folder)
    assert manifest is not None
    samples = context.config.at(iteration).generate.num_samples
    most = samples * max(_SHARD_ROWS // samples, 1)
    found: list[Shard[Sequence[Response]]] = []
    numbers: Counter[str] = Counter()
    for name, path in verified(folder).items():
        lang = part_of(path.stem)
        for start in range(0, row_count(path) if lang in langs else 0, most):
            plan, digest = partial(_some_rows, path, start, most), f"{manifest['files'][name][1]} {start} {most}"
            totals = Counter({lang: min(most, row_count(path) - start)})
            found.append(Shard(f"{lang}-{numbers[lang]:05d}", digest, totals, plan))
            numbers[lang] += 1
    return found


def _some_rows(path: Path, start: int, count: int) -> list[Response]:
    return read_rows(path, Response, rows=slice(start, start + count))


@dataclass(frozen=True)
class InMode:
    """Responses of one iteration with their scores in one reward mode, shard by shard."""

    shards: Sequence[Shard[Sequence[Response]]]
    scores: Finished[Score]
    candidates: Callable[[str, Sequence[Response]], list[Candidate]]
    """What of a shard's responses was to be scored."""
    no_text: str
    """Why a response that is not empty gave nothing to score."""
    too_long: str
    """Why what was to be scored has no score."""

    def by_shard(self, dropped: Dropped) -> Iterator[tuple[str, Sequence[Response], Any]]:
        """Each shard's name, responses and Arrow table of scores, in the same order.

        Args:
            dropped: receives the responses that were not scored.
        """
        for shard in self.shards:
            rows, table = shard.plan(), self.scores.table(shard.name)
            columns = (table[name].to_pylist() for name in ("lang", "id", "sample"))
            scored = {row_key(*key) for key in zip(*columns, strict=True)}
            lacking = [row for row in rows if row.key not in scored]
            asked = {one.row.key for one in self.candidates(shard.name, rows)} if lacking else set()
            for row in lacking:
                dropped.add(self._why(row, row.key in asked), [row.key])
            yield shard.name, rows, table

    def _why(self, row: Response, asked: bool) -> str:
        if not row.response.strip():
            return "empty"
        return self.too_long if asked else self.no_text


def score_in_mode(
    context: Context,
    target: Artifact,
    mode: Reward,
    shards: Sequence[Shard[Sequence[Response]]],
    iteration: int,
    label: str,
    dtype: DType | None = None,
) -> InMode:
    """Score responses of one iteration in one reward mode.

    Args:
        shards: the responses; none of them English if the mode is translate.
        dtype: the precision; by default the run's own.
    """
    policy = context.require_model(iteration - 1)
    reference = context.require_model(context.reward_reference(iteration))
    translations = _translated(context, target, policy, shards, iteration) if mode == "translate" else None
    conversation, thinking = _conversations(context, mode), context.config.model.thinking

    def candidates(name: str, rows: Sequence[Response]) -> list[Candidate]:
        found = [candidate(row, conversation(row), context.encoder, thinking) for row in rows if row.response.strip()]
        if translations is not None:
            translated = translations.rows(name)
            found = [replace(one, text=row.response) for one, row in zip(found, translated, strict=True)]
        return [one for one in found if one.text.strip()]

    asked = [shard.replanned(partial(candidates, shard.name)) for shard in shards]
    scores = score_shards(context, target, policy, reference, asked, label, dtype)
    no_text = "no answer after thinking" if translations is None else "empty translation"
    return InMode(shards, scores, candidates, no_text, limit(context)[1])


def _conversations(context: Context, mode: Reward) -> Callable[[Response | Score], Conversation]:
    """Gives the conversation that a row of the run is scored in."""
    prompts = (prompt for own in context.prompts.values() for prompt in own)
    return conversations(prompts, mode, context.config.language_name)


def score_rows(
    context: Context,
    target: Artifact,
    mode: Reward,
    rows: Sequence[Response],
    iteration: int,
    label: str,
    dropped: Dropped,
    dtype: DType | None = None,
) -> list[Score]:
    """Score a few responses of one iteration; see `score_in_mode`.

    Args:
        dropped: receives the rows that cannot be scored.
        dtype: the precision; by default the run's own.

    Returns:
        Scores in the order of `rows`.
    """
    found = score_in_mode(context, target, mode, whole(rows, [[row.key] for row in rows]), iteration, label, dtype)
    return [score for _, _, table in found.by_shard(dropped) for score in records(table, Score)]


def _translated(
    context: Context, target: Artifact, policy: str, shards: Sequence[Shard[Sequence[Response]]], iteration: int
) -> Finished[Response]:
    """English translations of the responses by the policy itself, at temperature 0, without those of empty ones."""
    greedy = context.config.generate.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
    sampling = responses.Sampling(context, policy, greedy, iteration, context.encoder)
    name = context.config.language_name

    def plan(rows: Sequence[Response]) -> Work[Response]:
        return sampling.work(
            [
                (
                    Prompt(
                        f"{row.id} {row.sample}",
                        row.lang,
                        TRANSLATE_INSTRUCTION.format(language=name(row.lang), text=row.response),
                    ),
                    0,
                )
                for row in rows
                if row.response.strip()
            ]
        )

    return sampling.compute(target, "translations", [shard.replanned(plan) for shard in shards], "translate")


def _middle(scores: Sequence[Score]) -> list[Score]:
    """A few scores of middle length."""
    by_length = sorted(scores, key=lambda score: score.num_tokens)
    start = max(0, (len(by_length) - _PROBES) // 2)
    return by_length[start : start + _PROBES]


def _probes(context: Context, mode: Reward, scores: Sequence[Score]) -> list[ScoredProbe]:
    """A few of these scores, evenly spaced, as token ids: training compares its own log-probabilities with them."""
    chosen = [scores[len(scores) * number // _PROBES] for number in range(_PROBES)] if scores else []
    conversation = _conversations(context, mode)
    return [
        {
            "prompt": list(context.encoder.prompt_of(messages(conversation(score)))),
            "response": list(context.encoder.response(score.scored_text)),
            "logp_policy": score.logp_policy,
        }
        for score in dict.fromkeys(chosen)
    ]
