"""Stage 2: the implicit reward of every response, `log pi^(t-1)(y|G(x)) - log pi_ref(y|G(x))`.

Reads the responses and the two models; writes `RUN/iter{t}/scores/{lang}-*.parquet`. Command:
`xlr score RUN --iteration t`.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from xlr import languages
from xlr.data.encoding import load_tokenizer, require_same_tokenizer
from xlr.data.quality import count_flaws, repetition
from xlr.errors import UserError
from xlr.foreign.modelfiles import load_config
from xlr.languages import ENGLISH
from xlr.maths.batching import even_batches
from xlr.maths.noise import reward_noise
from xlr.maths.rewards import TRANSLATE_INSTRUCTION, crosslingual_instruction, implicit_reward
from xlr.model.fused import require_usable
from xlr.records import INITIAL, Example, Prompt, Response, RowKey, Score, Scored
from xlr.rewarding import responses, room
from xlr.rewarding.facts import RewardFacts, ScoredProbe, ScoreFacts
from xlr.run.artifact import Artifact, rows_of
from xlr.run.context import Context, require
from xlr.run.dropped import Dropped
from xlr.run.files import atomic_path, write_json
from xlr.run.rows import require_each_once, write_shards
from xlr.settings.config import Config, Reward, settings
from xlr.terminal.console import console
from xlr.work.logps import resumable_logps

_CLEAR = 3  # times the noise of bfloat16: then most choices stay the same
_PROBES = 4  # scored sequences that training compares with its own log-probabilities

FORMULA = "log policy(y | x') - log reference(y | x'), summed over the response's tokens and its terminator"


def iterations(config: Config) -> list[int]:
    """The iterations in which responses are scored: all but iteration 0."""
    return config.trained_iterations


def artifact(context: Context, iteration: int) -> Artifact:
    """The scores of one iteration, with the settings and inputs that decide them."""
    config = context.config
    return Artifact(
        context.run.path,
        context.run.iteration(iteration) / "scores",
        "score",
        settings(config.score, "score") | {"model.dtype": config.model.dtype},
        {
            "responses": context.run.iteration(iteration) / "responses",
            "policy": context.model(iteration - 1),
            "reference": context.model(context.reward_reference(iteration)),
        },
    )


def check(context: Context) -> None:
    """Check early that policy and reference can be compared.

    Raises:
        UserError: pi^0 and pi_I do not share a tokenizer, pi_I is not usable, or sequences can exceed their positions.
    """
    from xlr.model.checks import require_model  # imports torch

    config, initial = context.config, context.model(INITIAL)
    tokenizer = load_tokenizer(initial)
    require_model(initial, tokenizer)
    require_usable(config.model.fused_operations, load_config(initial))
    if config.model.aligned:
        require_same_tokenizer(context.encoder.tokenizer, tokenizer, context.encoder.name, initial)
    prompts = [prompt for lang in config.languages for prompt in context.prompts[lang]]
    require_scorable(context, config.score.reward, prompts, context.prompts[ENGLISH], config.generate.max_new_tokens)
    if config.score.reward == "translate":
        _require_translatable(context)


def _require_translatable(context: Context) -> None:
    """Check that a response and its translation fit the policy's positions.

    Raises:
        UserError: they may not.
    """
    positions, longest = room.positions_of_run(context), context.config.generate.max_new_tokens
    for lang in context.config.languages:
        asked = TRANSLATE_INSTRUCTION.format(language=languages.name(lang), text="")
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
    of_english = {prompt.id: prompt.instruction for prompt in english}
    asked = [
        (f"{prompt.lang} {prompt.id!r}", scoring_instruction(mode, prompt, of_english[prompt.id])) for prompt in prompts
    ]
    positions, length = room.positions_of_run(context), context.config.score.max_length
    room.require_max_length(context.encoder, asked, positions, new_tokens, "score.max_length", length)


def make(context: Context, iteration: int) -> ScoreFacts:
    """Score every response that is neither empty nor too long."""
    run, mode = context.run, context.config.score.reward
    require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    scored_languages = [lang for lang in context.config.languages if mode != "translate" or lang != ENGLISH]
    rows = [row for row in rows_of(run.iteration(iteration) / "responses", Response) if row.lang in scored_languages]
    dropped = Dropped()
    scores = score_in_mode(context, target, mode, rows, iteration, f"score iteration {iteration}", dropped)
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in scored_languages:
            write_shards(folder, lang, Score, [score for score in scores if score.lang == lang])
        write_json(folder / "probes.json", _probes(context, mode, scores))
        require_each_once(folder, {row.key for row in rows} - dropped.keys)
    if context.pool.precision(context.config.scoring_dtype) == "bfloat16" and (warning := noise_warning(scores)):
        console.print(f"  warning: {warning}")
    of_language = {lang: [score for score in scores if score.lang == lang] for lang in scored_languages}
    facts: ScoreFacts = {
        "formula": FORMULA,
        "reward": mode,
        "dropped": dropped.counts(),
        "languages": {lang: reward_facts(own) for lang, own in of_language.items()},
    }
    target.finish(len(scores), facts, context.clock, {"scored": sum(score.num_tokens for score in scores)})
    target.remove_pieces()
    return facts


def noise_warning(scores: Sequence[Score]) -> str | None:
    """A warning if the rewards of a prompt's responses differ little more than bfloat16 changes one; None otherwise."""
    of_prompt: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        of_prompt.setdefault((score.lang, score.id), []).append(score.reward)
    spreads = [statistics.pvariance(rewards) for rewards in of_prompt.values() if len(rewards) > 1]
    if not spreads:
        return None
    spread = math.sqrt(statistics.fmean(spreads))
    noise = reward_noise(statistics.fmean(score.num_tokens for score in scores))
    if spread > _CLEAR * noise:
        return None
    return (
        f"the rewards of a prompt's responses have a standard deviation of {spread:.2g} nats, of which rounding to "
        f"bfloat16 may explain {noise:.2g}: many choices would be noise; set score.dtype=float32, or score with "
        "models that differ more"
    )


def score_in_mode(
    context: Context,
    target: Artifact,
    mode: Reward,
    rows: Sequence[Response],
    iteration: int,
    label: str,
    dropped: Dropped,
) -> list[Score]:
    """Score responses of one iteration in one reward mode.

    Args:
        rows: the responses; none of them English if the mode is translate.
        dropped: receives the rows that cannot be scored.

    Returns:
        Scores in the order of `rows`.
    """
    policy = context.require_model(iteration - 1)
    reference = context.require_model(context.reward_reference(iteration))
    filled = [row for row in rows if row.response.strip()]
    dropped.add("empty", (row.key for row in rows if not row.response.strip()))
    texts = [row.response for row in filled]
    if mode == "translate":
        texts = _translate(context, target, policy, filled, iteration)
        dropped.add("empty translation", (row.key for row, text in zip(filled, texts, strict=True) if not text.strip()))
        kept = [(row, text) for row, text in zip(filled, texts, strict=True) if text.strip()]
        filled, texts = [row for row, _ in kept], [text for _, text in kept]
    candidates = [
        Candidate(row, text, instruction)
        for row, text, instruction in zip(filled, texts, _instructions(context, mode, filled), strict=True)
    ]
    return score_candidates(context, target, policy, reference, candidates, label, dropped)


def _instructions(context: Context, mode: Reward, rows: Sequence[Response] | Sequence[Score]) -> list[str]:
    """The instruction that each row is scored under."""
    by_prompt = {(prompt.lang, prompt.id): prompt for prompts in context.prompts.values() for prompt in prompts}
    return [
        scoring_instruction(mode, by_prompt[row.lang, row.id], by_prompt[ENGLISH, row.id].instruction) for row in rows
    ]


def scoring_instruction(mode: Reward, prompt: Prompt, english: str) -> str:
    """The instruction that a response is scored under in each reward mode.

    Args:
        english: the same instruction in English.
    """
    if mode == "multilingual":
        return prompt.instruction
    if mode == "translate":
        return english
    return crosslingual_instruction(english, prompt.lang, languages.name(prompt.lang))


@dataclass(frozen=True)
class Candidate:
    """A response that is to be scored."""

    row: Response
    text: str
    """The scored text: the response or its translation."""
    instruction: str
    """The instruction that the text is scored under."""


def score_candidates(
    context: Context,
    target: Artifact,
    policy: str,
    reference: str,
    candidates: Sequence[Candidate],
    label: str,
    dropped: Dropped,
) -> list[Score]:
    """The log-ratio of every candidate that is not longer than `score.max_length` and the models' positions.

    Candidates with the same instruction share a batch, so that the instruction is computed once.

    Args:
        dropped: receives the rows that are too long.

    Returns:
        Scores in the order of `candidates`.

    Raises:
        UserError: the models do not share a tokenizer.
    """
    encoder, section = context.encoder, context.config.score
    limit, why = section.max_length, f"longer than score.max_length={section.max_length}"
    positions = room.positions_of_run(context)
    if positions is not None and positions < limit:
        limit, why = positions, f"longer than the models' {positions} positions"
    for name in {policy, reference} - {encoder.name}:
        require_same_tokenizer(encoder.tokenizer, load_tokenizer(name), encoder.name, name)
    with context.clock.measure("tokenise"):
        prompt_ids = {text: encoder.prompt(text) for text in {candidate.instruction for candidate in candidates}}
        response_ids = encoder.responses([candidate.text for candidate in candidates])
    members, too_long = _by_instruction(candidates, prompt_ids, response_ids, limit)
    dropped.add(why, too_long)
    groups = _groups(prompt_ids, response_ids, members, section.batch_tokens)
    examples = [Example(prompt_ids[text], tuple(response_ids[i] for i in group)) for text, group in groups]
    expected = {*context.config.languages, *(candidate.row.lang for candidate in candidates)}

    def to_rows(number: int, scored: Scored) -> list[Score]:
        found = zip(groups[number][1], examples[number].responses, scored.logps, scored.languages, strict=True)
        return [
            _score(candidates[index], len(response), policy_logp, reference_logp, language)
            for index, response, (policy_logp, reference_logp), language in found
        ]

    scores = resumable_logps(
        context,
        target,
        "parts",
        (policy, reference),
        examples,
        context.config.scoring_dtype,
        [[candidates[index].row.key for index in group] for _, group in groups],
        Score,
        to_rows,
        label,
        "responses",
        [[candidates[index].row.response for index in group] for _, group in groups],
        sorted(expected),
    )
    order = {candidate.row.key: index for index, candidate in enumerate(candidates)}
    return sorted(scores, key=lambda score: order[score.key])


def _by_instruction(
    candidates: Sequence[Candidate],
    prompt_ids: Mapping[str, tuple[int, ...]],
    response_ids: Sequence[tuple[int, ...]],
    limit: int,
) -> tuple[dict[str, list[int]], list[RowKey]]:
    """Instruction -> indices of its candidates, without those longer than `limit` tokens, which come second."""
    members: dict[str, list[int]] = {}
    too_long: list[RowKey] = []
    for index, candidate in enumerate(candidates):
        if len(prompt_ids[candidate.instruction]) + len(response_ids[index]) > limit:
            too_long.append(candidate.row.key)
        else:
            members.setdefault(candidate.instruction, []).append(index)
    return members, too_long


def _score(candidate: Candidate, num_tokens: int, logp_policy: float, logp_reference: float, language: str) -> Score:
    row = candidate.row
    return Score(
        row.id,
        row.lang,
        row.sample,
        row.response,
        row.finish_reason,
        candidate.text,
        logp_policy,
        logp_reference,
        implicit_reward(logp_policy, logp_reference),
        num_tokens,
        len(row.response),
        language,
        repetition(row.token_ids),
    )


def _groups(
    prompt_ids: Mapping[str, tuple[int, ...]],
    response_ids: Sequence[tuple[int, ...]],
    members: Mapping[str, list[int]],
    budget: int,
) -> list[tuple[str, list[int]]]:
    """Each instruction with indices of its responses, in several groups if all would exceed the budget of tokens."""
    groups: list[tuple[str, list[int]]] = []
    for instruction, indices in members.items():
        room = budget - len(prompt_ids[instruction])
        lengths = [len(response_ids[i]) for i in indices]
        for batch in even_batches(lengths, max(room, 1)):
            groups.append((instruction, sorted(indices[i] for i in batch)))
    return groups


def _translate(context: Context, target: Artifact, policy: str, rows: Sequence[Response], iteration: int) -> list[str]:
    """English translations of the responses by the policy itself, at temperature 0."""
    wanted = [
        Prompt(
            f"{row.id} {row.sample}",
            row.lang,
            TRANSLATE_INSTRUCTION.format(language=languages.name(row.lang), text=row.response),
        )
        for row in rows
    ]
    greedy = context.config.generate.model_copy(update={"temperature": 0.0, "top_p": 1.0, "top_k": 0})
    asked = [(prompt, 0) for prompt in wanted]
    translated = responses.sample_responses(
        context, target, "translations", policy, asked, greedy, iteration, "translate", context.encoder
    )
    return [row.response for row in translated.rows()]


def _probes(context: Context, mode: Reward, scores: Sequence[Score]) -> list[ScoredProbe]:
    """A few scored sequences as token ids, with which the trainer compares its own log-probabilities."""
    by_length = sorted(scores, key=lambda score: (score.num_tokens, score.lang, score.id, score.sample))
    middle = max(0, (len(by_length) - _PROBES) // 2)
    chosen = by_length[middle : middle + _PROBES]
    return [
        {
            "prompt": list(context.encoder.prompt(instruction)),
            "response": list(context.encoder.response(score.scored_text)),
            "logp_policy": score.logp_policy,
        }
        for score, instruction in zip(chosen, _instructions(context, mode, chosen), strict=True)
    ]


def reward_facts(scores: Sequence[Score]) -> RewardFacts:
    """Means over scores, and the number of scored responses that have each flaw."""
    count = max(len(scores), 1)
    mean = sum(score.reward for score in scores) / count
    return {
        "rows": len(scores),
        "tokens": sum(score.num_tokens for score in scores),
        "reward_mean": mean,
        "reward_std": (sum((score.reward - mean) ** 2 for score in scores) / count) ** 0.5,
        "chars_mean": sum(score.num_chars for score in scores) / count,
        "in_language": sum(score.detected_lang == score.lang for score in scores) / count,
        "flaws": count_flaws(scores),
    }
