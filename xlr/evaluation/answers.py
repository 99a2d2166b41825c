"""Stage 5: how a model answers held-out prompts, and whether its implicit reward knows held-out preferences.

Reads pi^t (t = 0 is the start) or a model of `evaluate.models`, and the held-out sets; writes `RUN/iter{t}/eval/` or
`RUN/models/{name}/eval/`: responses, scores and `eval.json`. `xlr evaluate RUN --iteration t`, or a name for t.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xlr.config import GenerateConfig, settings
from xlr.data.encoding import batch_shape
from xlr.data.preferences import load_preferences
from xlr.data.prompts import sources
from xlr.languages import ENGLISH
from xlr.maths.batching import token_budget_batches
from xlr.maths.rewards import implicit_reward
from xlr.records import Example, Response, Score
from xlr.rewarding import scores
from xlr.rewarding.responses import sample_responses
from xlr.rewarding.scores import score_responses, scoring_instruction
from xlr.run.artifact import Artifact, Iteration, atomic_path, read_json, read_rows, write_json, write_shards
from xlr.run.context import Context, require

# All iterations draw with the same random numbers, so that their answers differ by the model alone.
_SEED_ITERATION = -1


def artifact(context: Context, iteration: Iteration) -> Artifact:
    """The evaluation of a model and what decides it."""
    section = context.config.evaluate
    inputs: dict[str, str | Path] = {"model": context.model(iteration), "reference": context.model(-1)}
    if section.prompts:
        inputs |= sources(section.prompts, context.config.evaluated_languages)
        inputs["reward policy"] = context.model(0)
        if iteration:
            inputs["start"] = context.run.iteration(0) / "eval"
    if isinstance(iteration, int) and section.preferences:
        inputs["preferences"] = section.preferences
    own = {
        "seed": context.config.seed,
        "languages": list(context.config.evaluated_languages),
        "model.dtype": context.config.model.dtype,
        "generate.backend": context.config.generate.backend,
        "generate.tensor_parallel_size": context.config.generate.tensor_parallel_size,
        # How the work is cut into pieces.
        "generate.batch_size": context.config.generate.batch_size,
        "score.batch_tokens": context.config.score.batch_tokens,
        "score.max_length": context.config.score.max_length,
    }
    return Artifact(context.run.iteration(iteration) / "eval", "evaluate", settings(section, "evaluate") | own, inputs)


def make(context: Context, iteration: Iteration) -> dict[str, Any]:
    """Evaluate one model."""
    section = context.config.evaluate
    context.require_model(iteration)
    target = artifact(context, iteration)
    facts: dict[str, Any] = {"iteration": iteration, "languages": {}, "dropped": {}}
    answers: list[Response] = []
    scored: list[Score] = []
    if section.prompts:
        if iteration:
            require(artifact(context, 0), f"xlr evaluate {context.run.path} --iteration 0")
        answers, scored, too_long = _answer(context, target, iteration)
        facts["dropped"] = dict(too_long)
        start = read_rows(context.run.iteration(0) / "eval" / "scores", Score) if iteration else scored
        facts["languages"] = {
            lang: _language_facts(
                [row for row in answers if row.lang == lang],
                [row for row in scored if row.lang == lang],
                {row.id: row.reward for row in start if row.lang == lang},
            )
            for lang in context.config.evaluated_languages
        }
    if isinstance(iteration, int) and section.preferences:
        facts["preferences"] = _preference_facts(context, section.preferences, iteration)
    with atomic_path(target.folder) as folder:
        for name, row_type, rows in (("responses", Response, answers), ("scores", Score, scored)):
            (folder / name).mkdir(parents=True)
            for lang in context.config.evaluated_languages:
                write_shards(folder / name, lang, row_type, [row for row in rows if row.lang == lang])
        write_json(folder / "eval.json", facts)
    target.finish(len(answers), facts, context.clock)
    target.remove_pieces()
    return facts


def _answer(
    context: Context, target: Artifact, iteration: Iteration
) -> tuple[list[Response], list[Score], Counter[str]]:
    """One answer to each held-out prompt, and its reward log pi^0 - log pi_I: one yardstick for all iterations."""
    section = context.config.evaluate
    how = GenerateConfig(
        temperature=section.temperature,
        top_p=section.top_p,
        max_new_tokens=section.max_new_tokens,
        batch_size=context.config.generate.batch_size,
    )
    wanted = [(prompt, 0) for prompt in context.questions]
    label = f"evaluate {iteration}"
    model, encoder = context.model(iteration), context.encoder_of(iteration)
    answers = sample_responses(
        context, target, "responses", model, wanted, how, _SEED_ITERATION, f"{label}: answer", encoder
    )
    filled = [row for row in answers if row.response.strip()]
    english = {prompt.id: prompt.instruction for prompt in context.held_out[ENGLISH]}
    by_key = {(prompt.lang, prompt.id): prompt for prompt, _ in wanted}
    instructions = [scoring_instruction("crosslingual", by_key[row.lang, row.id], english[row.id]) for row in filled]
    texts = [row.response for row in filled]
    policy, reference = context.model(0), context.model(-1)
    scored, too_long = score_responses(
        context, target, policy, reference, instructions, filled, texts, f"{label}: score"
    )
    return answers, scored, too_long


def _language_facts(
    answers: Sequence[Response], scored: Sequence[Score], start_rewards: dict[str, float]
) -> dict[str, Any]:
    count = max(len(answers), 1)
    gains = [row.reward - start_rewards[row.id] for row in scored if row.id in start_rewards]
    compared = max(len(gains), 1)
    return {
        **scores.reward_facts(scored),
        "rows": len(answers),
        "in_language": sum(row.detected_lang == row.lang for row in scored) / count,
        "complete": sum(row.finish_reason == "stop" for row in answers) / count,
        "finish_reasons": {
            reason: sum(row.finish_reason == reason for row in answers) for reason in ("stop", "length")
        },
        "empty": sum(not row.response.strip() for row in answers) / count,
        "reward_gain": sum(gains) / compared,
        "reward_wins": sum((gain > 0) + 0.5 * (gain == 0) for gain in gains) / compared,
    }


def _preference_facts(context: Context, path: str, iteration: int) -> dict[str, Any]:
    """Accuracy and margin of the implicit reward log pi^t - log pi_I on a preference set."""
    encoder = context.encoder
    examples = [
        Example(encoder.prompt_of(one.prompt), (encoder.response(one.chosen), encoder.response(one.rejected)))
        for one in load_preferences(path)
    ]
    lengths, padded_rows = batch_shape(examples, context.config.model.attn_implementation)
    batches = token_budget_batches(lengths, context.config.score.batch_tokens, padded_rows)
    policy, reference = context.model(iteration), context.model(-1)
    logps: list[list[float]] = []  # of each model, chosen and rejected in turn
    for names in scores.model_passes(context.config.ray, policy, reference):
        tasks = {number: (names, [examples[i] for i in batch]) for number, batch in enumerate(batches)}
        results = [result for _, result in sorted(context.pool.map("score", tasks))]
        logps += map(list, zip(*(own for result in results for example in result for own in example), strict=True))
    rewards = list(map(implicit_reward, *logps))
    margins = [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    return {
        "pairs": len(margins),
        "accuracy": sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins),
        "margin": sum(margins) / len(margins),
    }


def read(context: Context, iteration: Iteration) -> dict[str, Any] | None:
    """The evaluation of pi^t, if it is finished."""
    file = context.run.iteration(iteration) / "eval" / "eval.json"
    return read_json(file) if file.is_file() else None
