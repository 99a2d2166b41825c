"""Stage 5d: the judge rates each answer of a model to questions of several turns, from 1 to 10.

Reads the answers of `converse`; writes `RUN/iter{t}/ratings/{judge}/`. Run alone with `xlr rate RUN --iteration t`.

Source: single-answer grading of MT-Bench, arXiv 2306.05685.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from xlr.chat.encoding import ChatEncoder
from xlr.data.turnrows import Dialogue, sources
from xlr.dialogues import answers as conversing
from xlr.dialogues.facts import RatedFacts, RateFacts
from xlr.errors import UserError
from xlr.judging import endpoint, localjudge, question
from xlr.judging.budget import cost
from xlr.records import START, Message, ModelKey, Rating, Response, Verdict
from xlr.run.artifact import Artifact, Source
from xlr.run.context import Context, require
from xlr.run.files import atomic_path
from xlr.run.languagenames import language_names
from xlr.run.manifests import rows_of
from xlr.run.rows import write_shards
from xlr.settings.config import Config, JudgeConfig
from xlr.settings.deciding import deciding
from xlr.terminal.console import console

_BACKENDS: dict[str, ModuleType] = {"openai": endpoint, "transformers": localjudge}
_DECIDING = ("judge.backend", "judge.model", "judge.temperature", "judge.extra_body")


def iterations(config: Config) -> list[ModelKey]:
    """All models, if there are such questions and a judge."""
    return conversing.iterations(config) if config.judge.model else []


def artifact(context: Context, model: ModelKey) -> Artifact:
    """The ratings of a model and what decides them."""
    config, langs = context.config, context.config.evaluated_languages
    given: dict[str, Any] = deciding(config.judge, "judge")
    section = conversing.questions_of(context)
    turns = deciding(section, "evaluate.turns")
    own = {key: given[key] for key in _DECIDING if key in given} | {key: turns[key] for key in conversing.OF_RATINGS}
    if config.judge.backend == "transformers" or config.judge.max_tokens is None:
        own["evaluate.turns.judge_max_tokens"] = None
    inputs: dict[str, Source] = {
        "answers": conversing.artifact(context, model).folder,
        **sources(section, langs),
        **language_names(config, langs),
    }
    if config.judge.backend == "transformers":
        inputs["judge"] = context.located(str(config.judge.model))
        own |= {"model.dtype": config.model.dtype, "score.batch_tokens": config.score.batch_tokens}
        del own["judge.model"]  # its content is an input
    folder = _folder(context, model)
    if model != START:
        inputs["start"] = _folder(context, START)
    return Artifact(context.run.path, folder, "rate", own | {"languages": list(langs)}, inputs)


def _folder(context: Context, model: ModelKey) -> Path:
    """The folder of the ratings that this judge gives a model."""
    return context.run.judged(model, "ratings", context.config.judge.folder)


def _scale(context: Context) -> question.Scale:
    return question.ratings(conversing.questions_of(context).judge_max_tokens)


def check(context: Context) -> None:
    """Check early that the judge can be asked.

    Raises:
        UserError: it cannot, or a question is longer than it reads even without the answers.
    """
    judge = context.config.judge
    if judge.backend == "openai":
        endpoint.require_usable(judge)
        return
    judge = judge.model_copy(update={"model": context.located(str(judge.model))})
    shortest = {
        f"{one.lang} {one.id!r}": _question(context, context.encoder, one, [""] * len(one.turns), len(one.turns) - 1)
        for one in conversing.load(context)
    }
    localjudge.require_usable(judge, shortest, _scale(context))


def make(context: Context, model: ModelKey) -> RateFacts:
    """Rate one model's answers.

    Raises:
        UserError: answers are missing, the judge cannot be asked, or it gave no rating to most answers.
    """
    require(conversing.artifact(context, model), f"xlr converse {context.run.path} --iteration {model}")
    if model != START:
        require(artifact(context, START), f"xlr rate {context.run.path} --iteration 0")
    judge, target, dialogues = context.config.judge, artifact(context, model), conversing.load(context)
    answers = _answers(context, model)
    asked = [(one, number) for one in dialogues for number in range(len(one.turns))]
    encoder = context.encoder_of(model)
    questions = [_question(context, encoder, one, answers[one.lang, one.id], number) for one, number in asked]
    verdicts, new = _BACKENDS[judge.backend].ask(
        context, target, f"rate {model}", questions, [one.lang for one, _ in asked], _scale(context)
    )
    rows = [_rating(one, number, verdict) for (one, number), verdict in zip(asked, verdicts, strict=True)]
    _require_ratings(judge, rows)
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        for lang in context.config.evaluated_languages:
            write_shards(folder, lang, Rating, [row for row in rows if row.lang == lang])
    before = [] if model == START else rows_of(_folder(context, START), Rating)
    prompt_tokens = sum(verdict.prompt_tokens for verdict in verdicts)
    completion_tokens = sum(verdict.completion_tokens for verdict in verdicts)
    facts: RateFacts = {
        "judge": judge.name,
        "asked": new,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": cost(judge, prompt_tokens, completion_tokens),
        "languages": {
            lang: rated_facts(
                [row for row in rows if row.lang == lang],
                {one.id: one.category for one in dialogues if one.lang == lang},
                [row for row in before if row.lang == lang],
            )
            for lang in context.config.evaluated_languages
        },
    }
    target.finish(len(rows), facts, context.clock, {"asked": prompt_tokens, "answered": completion_tokens})
    target.remove_pieces()
    _show(facts)
    return facts


def _answers(context: Context, model: ModelKey) -> dict[tuple[str, str], list[str]]:
    """The answers to each question, turn by turn."""
    rows = rows_of(conversing.artifact(context, model).folder, Response)
    found: dict[tuple[str, str], list[str]] = {}
    for row in sorted(rows, key=lambda row: row.sample):
        found.setdefault((row.lang, row.id), []).append(row.response)
    return found


def _question(
    context: Context, encoder: ChatEncoder, one: Dialogue, answers: Sequence[str], number: int
) -> list[Message]:
    """The question about the answer to one turn.

    Args:
        encoder: that of the model that answered.
    """
    before = conversing.prompt(context, one, answers[:number], encoder)
    answer = conversing.without_thought(answers[number], encoder)
    language = context.config.language_name(one.lang)
    explained = context.config.judge.backend == "openai"
    return question.rating(before.transcript, answer, one.references[number], language, explained)


def _rating(one: Dialogue, number: int, verdict: Verdict) -> Rating:
    share = verdict.preference
    span = question.HIGHEST_RATING - question.LOWEST
    rating = None if math.isnan(share) else question.LOWEST + span * share
    return Rating(one.id, one.lang, number, rating, verdict.answer)


def _require_ratings(judge: JudgeConfig, rows: Sequence[Rating]) -> None:
    """Check that the judge understands the question.

    Raises:
        UserError: it gave most answers no rating.
    """
    undecided = [row for row in rows if row.rating is None]
    if 2 * len(undecided) > len(rows):
        remedy = {
            "openai": "raise evaluate.turns.judge_max_tokens (with judge.max_tokens null, what judge.extra_body says)",
            "transformers": "lower evaluate.turns.max_new_tokens",
        }[judge.backend]
        raise UserError(
            f"judge {judge.model}: gave no rating to {len(undecided)} of {len(rows)} answers; one of its replies is "
            f"{undecided[0].reply[-200:]!r}. Set another judge.model, or {remedy}"
        )


def rated_facts(rows: Sequence[Rating], categories: Mapping[str, str], start: Sequence[Rating] = ()) -> RatedFacts:
    """Figures of the ratings in one language.

    The mean is over answers, as in MT-Bench. Its standard error is over questions, because the turns of a question
    depend on each other.

    Args:
        categories: of each question, by id.
        start: the ratings of pi^0 in this language; none for pi^0 itself.
    """
    rated = [(row, row.rating) for row in rows if row.rating is not None]
    by_question: dict[str, list[float]] = {}
    by_turn: dict[int, list[float]] = {row.turn: [] for row in rows}
    by_category: dict[str, list[float]] = {}
    for row, rating in rated:
        by_question.setdefault(row.id, []).append(rating)
        by_turn[row.turn].append(rating)
        if category := categories[row.id]:
            by_category.setdefault(category, []).append(rating)
    facts: RatedFacts = {
        "questions": len(by_question),
        "rating": _mean([rating for _, rating in rated]),
        "error": _error(list(by_question.values())),
        "turns": [_mean(own) for _, own in sorted(by_turn.items())],
        "categories": {name: statistics.fmean(own) for name, own in by_category.items()},
        "undecided": len(rows) - len(rated),
    }
    before = {(row.id, row.turn): row.rating for row in start if row.rating is not None}
    gains: dict[str, list[float]] = {}
    for row, rating in rated:
        if (row.id, row.turn) in before:
            gains.setdefault(row.id, []).append(rating - before[row.id, row.turn])
    if gains:
        of_questions = list(gains.values())
        facts["gain"] = {"mean": statistics.fmean(chain.from_iterable(of_questions)), "error": _error(of_questions)}
    return facts


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _error(questions: Sequence[Sequence[float]]) -> float | None:
    """The standard error of the mean over answers, where the answers to one question are one cluster.

    Source: the ratio estimator for clusters, Cochran, Sampling Techniques (1977), section 9A.
    """
    if len(questions) < 2:
        return None
    count = sum(map(len, questions))
    mean = sum(map(sum, questions)) / count
    deviations = math.fsum((sum(own) - mean * len(own)) ** 2 for own in questions)
    return math.sqrt(deviations * len(questions) / (len(questions) - 1)) / count


def _show(facts: RateFacts) -> None:
    for lang, own in facts["languages"].items():
        turns = ", ".join("none" if one is None else f"{one:.2f}" for one in own["turns"])
        mean = "none" if own["rating"] is None else f"{own['rating']:.2f}"
        console.print(f"  {lang}: rated {mean} of 10 over {own['questions']} questions (by turn: {turns})")
