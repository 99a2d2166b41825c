"""Scores candidates: texts under instructions, by the log-ratio of two models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from xlr.chat.encoding import ChatEncoder
from xlr.data.quality import repetition
from xlr.languages import ENGLISH
from xlr.maths.batching import even_batches
from xlr.maths.rewards import crosslingual_instruction, implicit_reward
from xlr.records import Conversation, DType, Example, Prompt, Response, Score, Scored, messages
from xlr.run.artifact import Artifact
from xlr.run.context import Context
from xlr.sampling import room
from xlr.settings.modelconfig import Thinking
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import Dropped
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.pieces import Finished
from xlr.work.shards import Shard, by_language

_Before: TypeAlias = tuple[Conversation, str]
"""What a scored text follows: a conversation, and the block in which the model thought."""


@dataclass(frozen=True)
class Candidate:
    """A response that is to be scored."""

    row: Response
    text: str
    """The scored text: the response or its translation."""
    asked: Conversation
    """The conversation that the text is scored in."""
    answer: str
    """The response without the block in which the model thought."""
    thought: str = ""
    """What stands before the text in the response and is not scored."""


def candidate(row: Response, asked: Conversation, encoder: ChatEncoder, thinking: Thinking) -> Candidate:
    """A response that is to be scored in a conversation.

    Args:
        encoder: that of the model that gave it.
    """
    thought = encoder.thought(row.response)
    answer = row.response[len(thought) :]
    if thinking == "unscored":
        return Candidate(row, answer, asked, answer, thought)
    return Candidate(row, row.response, asked, answer)


def scoring_conversation(mode: Reward, prompt: Prompt, english: Prompt, language: str) -> Conversation:
    """The conversation that a response is scored in, in each reward mode.

    Args:
        english: the same prompt in English.
        language: the English name of the prompt's language.
    """
    if mode in ("multilingual", "model", "judge"):
        return prompt.conversation
    if mode == "translate":
        return english.conversation
    instruction = crosslingual_instruction(english.instruction, prompt.lang, language)
    return replace(english, instruction=instruction).conversation


def conversations(
    prompts: Iterable[Prompt], mode: Reward, name: Callable[[str], str]
) -> Callable[[Response | Score], Conversation]:
    """Gives the conversation that a row is scored in.

    Args:
        prompts: those of the rows, and the same in English.
        name: gives the English name of a language.
    """
    by_prompt = {(prompt.lang, prompt.id): prompt for prompt in prompts}

    @lru_cache(1024)  # a prompt has many responses, one after the other
    def of_prompt(lang: str, prompt: str) -> Conversation:
        return scoring_conversation(mode, by_prompt[lang, prompt], by_prompt[ENGLISH, prompt], name(lang))

    return lambda row: of_prompt(row.lang, row.id)


def score_candidates(
    context: Context,
    target: Artifact,
    policy: str,
    reference: str,
    candidates: Sequence[Candidate],
    label: str,
    dropped: Dropped,
) -> list[Score]:
    """The log-ratio of every candidate that is not too long, in the order of `candidates`; see `score_shards`.

    Args:
        dropped: receives the rows that are too long.
    """
    shards = by_language(candidates, lambda candidate: candidate.row.key)
    scores = score_shards(context, target, (policy, reference), shards, label, context.config.scoring_dtype).rows()
    scored = {score.key for score in scores}
    dropped.add(limit(context)[1], (one.row.key for one in candidates if one.row.key not in scored))
    return scores


def score_shards(
    context: Context,
    target: Artifact,
    models: Sequence[str],
    shards: Sequence[Shard[Sequence[Candidate]]],
    label: str,
    dtype: DType,
    pieces: str = "parts",
    terminator: bool = True,
) -> Finished[Score]:
    """The log-ratio of every candidate that is not longer than `score.max_length` and the models' positions.

    Candidates with the same prompt share a batch, so that the prompt is computed once.

    Args:
        models: policy and reference.
        dtype: the precision.
        pieces: name of the folder of pieces beside the artefact.
        terminator: whether the token that ends a response counts.

    Returns:
        Scores of each shard, in the order of its candidates.

    Raises:
        UserError: the models do not share a tokenizer.
    """
    for name in models:
        context.require_same_tokenizer(name)
    encoder, longest = context.encoder, limit(context)[0]

    def plan(candidates: Sequence[Candidate]) -> Scoring[Score]:
        before = [(one.asked, one.thought) for one in candidates]
        response_ids = scored_ids(encoder, [one.text for one in candidates], terminator)
        return _scoring(context, longest, candidates, before, _prompt_ids(encoder, before), response_ids)

    plans = [shard.replanned(plan) for shard in shards]
    return resumable_logps(context, target, pieces, models, dtype, Score, plans, label, "responses")


def scored_ids(encoder: ChatEncoder, texts: Sequence[str], terminator: bool) -> list[tuple[int, ...]]:
    """The tokens of each text whose log-probabilities count. No text may be empty.

    Args:
        terminator: whether the token that ends a response is one of them.
    """
    return [ids if terminator else ids[:-1] for ids in encoder.responses(texts)]


def rate_shards(
    context: Context,
    target: Artifact,
    shards: Sequence[Shard[Sequence[Candidate]]],
    label: str,
    dtype: DType,
    pieces: str = "parts",
) -> Finished[Score]:
    """The reward model's rating of every candidate's answer, like `score_shards`. It reads no think block."""
    encoder, longest = context.reward_encoder, limit(context, rating=True)[0]

    def plan(candidates: Sequence[Candidate]) -> Scoring[Score]:
        before = [(one.asked, "") for one in candidates]
        response_ids = encoder.turns([one.answer for one in candidates])
        return _scoring(context, longest, candidates, before, _prompt_ids(encoder, before), response_ids)

    plans, models = [shard.replanned(plan) for shard in shards], (context.reward_model,)
    return resumable_logps(context, target, pieces, models, dtype, Score, plans, label, "responses", rating=True)


def limit(context: Context, rating: bool = False) -> tuple[int, str]:
    """The most tokens of a prompt with a response, and why a longer candidate is left out, in words.

    Args:
        rating: whether the reward model reads them.
    """
    from xlr.model.checks import positions  # imports torch

    length, whose = context.config.score.max_length, "models'"
    most = room.positions_of_run(context)
    if rating:
        most, whose = positions(context.reward_model), "reward model's"
    if most is not None and most < length:
        return most, f"longer than the {whose} {most} positions"
    return length, f"longer than score.max_length={length}"


def _prompt_ids(encoder: ChatEncoder, before: Sequence[_Before]) -> dict[_Before, tuple[int, ...]]:
    """The tokens of what scored texts follow. Each conversation is tokenised once."""
    asked_ids = {asked: encoder.prompt_of(messages(asked)) for asked in {asked for asked, _ in before}}
    return {(asked, thought): asked_ids[asked] + encoder.beginning(thought) for asked, thought in dict.fromkeys(before)}


def _scoring(
    context: Context,
    longest: int,
    candidates: Sequence[Candidate],
    before: Sequence[_Before],
    prompt_ids: Mapping[_Before, tuple[int, ...]],
    response_ids: Sequence[tuple[int, ...]],
) -> Scoring[Score]:
    """The examples of candidates, without those that have more than `longest` tokens with their prompt.

    Args:
        before: what each candidate follows.
        prompt_ids: the tokens of these.
        response_ids: those of each candidate.
    """
    members: dict[_Before, list[int]] = {}
    for index, own in enumerate(before):
        if len(prompt_ids[own]) + len(response_ids[index]) <= longest:
            members.setdefault(own, []).append(index)
    groups = _groups(prompt_ids, response_ids, members, context.config.score.batch_tokens)
    examples = [Example(prompt_ids[own], tuple(response_ids[i] for i in group)) for own, group in groups]

    def to_rows(number: int, scored: Scored) -> list[Score]:
        found = zip(groups[number][1], examples[number].responses, scored.logps, scored.languages, strict=True)
        return [
            _score(candidates[index], len(response), values, language) for index, response, values, language in found
        ]

    return Scoring(
        examples,
        [[candidates[index].row.key for index in group] for _, group in groups],
        to_rows,
        [[(candidates[index].row.lang, candidates[index].answer) for index in group] for _, group in groups],
        sorted({candidate.row.lang for candidate in candidates}),
        [group for _, group in groups],
    )


def _score(candidate: Candidate, num_tokens: int, values: Sequence[float], language: str) -> Score:
    """A candidate's score from its two log-probabilities, or from its one rating."""
    row = candidate.row
    logp_policy, logp_reference = (None, None) if len(values) == 1 else values
    reward = values[0] if len(values) == 1 else implicit_reward(*values)
    return Score(
        row.id,
        row.lang,
        row.sample,
        row.response,
        row.finish_reason,
        candidate.text,
        logp_policy,
        logp_reference,
        reward,
        num_tokens,
        len(row.response) - len(candidate.thought),
        language,
        repetition(row.token_ids),
    )


def _groups(
    prompt_ids: Mapping[_Before, tuple[int, ...]],
    response_ids: Sequence[tuple[int, ...]],
    members: Mapping[_Before, list[int]],
    budget: int,
) -> list[tuple[_Before, list[int]]]:
    """What responses follow, with indices of the responses, in several groups if all would exceed the token budget."""
    groups: list[tuple[_Before, list[int]]] = []
    for before, indices in members.items():
        left = budget - len(prompt_ids[before])
        lengths = [len(response_ids[i]) for i in indices]
        for batch in even_batches(lengths, max(left, 1)):
            groups.append((before, sorted(indices[i] for i in batch)))
    return groups
