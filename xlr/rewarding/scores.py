"""Stage 2: the implicit reward of every response, `log pi^(t-1)(y|G(x)) - log pi_ref(y|G(x))`.

Reads the responses and the two models; writes `RUN/iter{t}/scores/{lang}-*.parquet`. Run alone with
`xlr score RUN --iteration t`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from xlr import languages
from xlr.config import RayConfig, Reward, settings
from xlr.data.encoding import batch_shape, load_tokenizer, require_same_tokenizer
from xlr.data.quality import count_flaws, repetition
from xlr.languages import ENGLISH
from xlr.maths.batching import even_batches, token_budget_batches
from xlr.maths.rewards import TRANSLATE_INSTRUCTION, crosslingual_instruction, implicit_reward
from xlr.records import Example, Logp, Prompt, Response, Score
from xlr.rewarding import responses
from xlr.run.artifact import Artifact, atomic_path, read_rows, write_json, write_shards
from xlr.run.context import Context, Row, Work, require, resumable

_PROBES = 4

FORMULA = "log policy(y | x') - log reference(y | x'), summed over the response's tokens and its terminator"


def artifact(context: Context, iteration: int) -> Artifact:
    """The scores of one iteration and what decides them."""
    config = context.config
    reference = -1 if config.score.reference == "initial" else iteration - 2
    return Artifact(
        context.run.iteration(iteration) / "scores",
        "score",
        settings(config.score, "score") | {"model.dtype": config.model.dtype},
        {
            "responses": context.run.iteration(iteration) / "responses",
            "policy": context.model(iteration - 1),
            "reference": context.model(reference),
        },
    )


def make(context: Context, iteration: int) -> dict[str, Any]:
    """Score every response that is neither empty nor too long."""
    run, mode = context.run, context.config.score.reward
    require(responses.artifact(context, iteration), f"xlr generate {run.path} --iteration {iteration}")
    target = artifact(context, iteration)
    scored_languages = [lang for lang in context.config.languages if mode != "translate" or lang != ENGLISH]
    rows = [row for row in read_rows(run.iteration(iteration) / "responses", Response) if row.lang in scored_languages]
    scores, dropped = score_in_mode(context, target, mode, rows, iteration, f"score iteration {iteration}")
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in scored_languages:
            write_shards(folder, lang, Score, [score for score in scores if score.lang == lang])
        write_json(folder / "probes.json", _probes(context, mode, scores))
    facts = {
        "formula": FORMULA,
        "reward": mode,
        "dropped": dict(sorted(dropped.items())),
        "languages": {
            lang: reward_facts([score for score in scores if score.lang == lang]) for lang in scored_languages
        },
    }
    target.finish(len(scores), facts, context.clock)
    target.remove_pieces()
    return facts


def score_in_mode(
    context: Context, target: Artifact, mode: Reward, rows: Sequence[Response], iteration: int, label: str
) -> tuple[list[Score], Counter[str]]:
    """The reward of an iteration's responses under a reward mode; for translate none of them is English.

    Returns:
        Scores in the order of `rows`, and how many rows were left out, by language and reason.
    """
    policy, reference = context.require_model(iteration - 1), context.reward_reference(iteration)
    dropped: Counter[str] = Counter()
    rows = [row for row in rows if row.response.strip() or dropped.update([f"{row.lang} empty"])]
    texts = [row.response for row in rows]
    if mode == "translate":
        texts = _translate(context, target, policy, rows, iteration)
        kept = [
            i for i, text in enumerate(texts) if text.strip() or dropped.update([f"{rows[i].lang} empty translation"])
        ]
        rows, texts = [rows[i] for i in kept], [texts[i] for i in kept]
    instructions = _instructions(context, mode, rows)
    scores, too_long = score_responses(context, target, policy, reference, instructions, rows, texts, label)
    return scores, dropped + too_long


def _instructions(context: Context, mode: Reward, rows: Sequence[Response] | Sequence[Score]) -> list[str]:
    """What each row is scored under."""
    by_prompt = {(prompt.lang, prompt.id): prompt for prompts in context.prompts.values() for prompt in prompts}
    return [
        scoring_instruction(mode, by_prompt[row.lang, row.id], by_prompt[ENGLISH, row.id].instruction) for row in rows
    ]


def scoring_instruction(mode: Reward, prompt: Prompt, english: str) -> str:
    """What a response is scored under in each reward mode."""
    if mode == "multilingual":
        return prompt.instruction
    if mode == "translate":
        return english
    return crosslingual_instruction(english, prompt.lang, languages.name(prompt.lang))


def score_responses(
    context: Context,
    target: Artifact,
    policy: str,
    reference: str,
    instructions: Sequence[str],
    rows: Sequence[Response],
    texts: Sequence[str],
    label: str,
) -> tuple[list[Score], Counter[str]]:
    """Log-probabilities of `texts` under the instructions, by both models, in token-budget batches.

    Responses to the same instruction are computed together, so that it is computed once.

    Returns:
        Scores in the order of `rows`, and how many were left out as too long, by language.

    Raises:
        UserError: the models do not share a tokenizer.
    """
    encoder = context.encoder
    for name in {policy, reference} - {encoder.name}:
        require_same_tokenizer(encoder.tokenizer, load_tokenizer(name), encoder.name, name)
    limit = context.config.score.max_length
    with context.clock.measure("tokenise"):
        prompt_ids = {instruction: encoder.prompt(instruction) for instruction in set(instructions)}
        response_ids = encoder.responses(texts)
    members: dict[str, list[int]] = {}
    too_long: Counter[str] = Counter()
    for index, instruction in enumerate(instructions):
        if len(prompt_ids[instruction]) + len(response_ids[index]) > limit:
            too_long[f"{rows[index].lang} longer than score.max_length={limit}"] += 1
        else:
            members.setdefault(instruction, []).append(index)
    groups = _groups(prompt_ids, response_ids, members, context.config.score.batch_tokens)
    examples = [
        Example(prompt_ids[instruction], tuple(response_ids[i] for i in indices)) for instruction, indices in groups
    ]
    lengths, padded_rows = batch_shape(examples, context.config.model.attn_implementation)
    batches = token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows)
    indices = [[i for example in batch for i in groups[example][1]] for batch in batches]  # the rows of each batch
    *first, last = model_passes(context.config.ray, policy, reference)

    def work(names: tuple[str, ...], row_type: type[Row], to_rows: Callable[[int, Any], list[Row]]) -> Work[Row]:
        return Work(
            "score",
            [(names, [examples[i] for i in batch]) for batch in batches],
            [Counter(rows[i].lang for i in batch) for batch in indices],
            row_type,
            to_rows,
            lambda number, _: sum(len(response_ids[i]) for i in indices[number]),
        )

    def to_logps(number: int, result: list[list[tuple[float]]]) -> list[Logp]:
        return [Logp(logp) for example in result for (logp,) in example]

    expected = {*context.config.languages, *(row.lang for row in rows)}
    known: list[Logp] = []
    for names in first:
        known = resumable(context, target, "policy", work(names, Logp, to_logps), f"{label}: policy", "responses")
    of_policy = iter(known)
    policy_logps = [[row.logp for row in islice(of_policy, len(batch))] for batch in indices]

    def to_rows(number: int, result: list[list[tuple[float, ...]]]) -> list[Score]:
        logps = [own for example in result for own in example]
        if first:
            logps = [(logp, *own) for logp, own in zip(policy_logps[number], logps, strict=True)]
        # While the workers compute: before them it would keep every GPU waiting for minutes.
        detected = languages.detect((rows[index].response for index in indices[number]), expected)
        return [
            Score(
                rows[index].id,
                rows[index].lang,
                rows[index].sample,
                rows[index].response,
                rows[index].finish_reason,
                texts[index],
                logp_policy,
                logp_reference,
                implicit_reward(logp_policy, logp_reference),
                len(response_ids[index]),
                len(rows[index].response),
                language,
                repetition(rows[index].token_ids),
            )
            for index, (logp_policy, logp_reference), language in zip(indices[number], logps, detected, strict=True)
        ]

    flat = resumable(context, target, "parts", work(last, Score, to_rows), label, "responses")
    order = {(row.lang, row.id, row.sample): index for index, row in enumerate(rows)}
    return sorted(flat, key=lambda score: order[score.lang, score.id, score.sample]), too_long


def model_passes(settings: RayConfig, policy: str, reference: str) -> list[tuple[str, ...]]:
    """Which models the workers hold together: both, or one after the other."""
    return [(policy,), (reference,)] if settings.one_model_at_a_time else [(policy, reference)]


def _groups(
    prompt_ids: Mapping[str, tuple[int, ...]],
    response_ids: Sequence[tuple[int, ...]],
    members: Mapping[str, list[int]],
    budget: int,
) -> list[tuple[str, list[int]]]:
    """Responses that share a prompt, cut where a prompt with all its responses would exceed the budget."""
    groups: list[tuple[str, list[int]]] = []
    for instruction, indices in members.items():
        room = budget - len(prompt_ids[instruction])
        lengths = [len(response_ids[i]) for i in indices]
        for batch in even_batches(lengths, max(room, 1)):
            groups.append((instruction, sorted(indices[i] for i in batch)))
    return groups


def _translate(context: Context, target: Artifact, policy: str, rows: Sequence[Response], iteration: int) -> list[str]:
    """The policy's own English translations of the responses, at temperature 0."""
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
    return [row.response for row in translated]


def _probes(context: Context, mode: Reward, scores: Sequence[Score]) -> list[dict[str, Any]]:
    """A few scored sequences as token ids, against which the trainer checks its own log-probabilities."""
    by_length = sorted(scores, key=lambda score: (score.num_tokens, score.lang, score.id, score.sample))
    middle = max(0, (len(by_length) - _PROBES) // 2)
    chosen = by_length[middle : middle + _PROBES]
    return [
        {
            "prompt": context.encoder.prompt(instruction),
            "response": context.encoder.response(score.scored_text),
            "logp_policy": score.logp_policy,
        }
        for score, instruction in zip(chosen, _instructions(context, mode, chosen), strict=True)
    ]


def reward_facts(scores: Sequence[Score]) -> dict[str, Any]:
    """What is worth knowing of one language's scores."""
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
