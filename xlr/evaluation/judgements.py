"""Stage 6: a judge compares a model's held-out answers with the baseline's.

Reads the answers of the model and of the baseline. Writes `judgements/{judge}/` beside the model's `eval/`:
`annotations/{lang}.json` in AlpacaEval's format and `winrates.json`. Command: `xlr judge RUN --iteration t`. Another
judge has another folder, so that both are kept.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from xlr.errors import UserError
from xlr.evaluation import answers as evaluation
from xlr.evaluation import baseline
from xlr.evaluation.baseline import Answers
from xlr.evaluation.facts import AnnotationRow, JudgeFacts, WinRates
from xlr.judging import endpoint, localjudge, question
from xlr.judging.budget import cost
from xlr.records import Message, ModelKey, Prompt, Verdict
from xlr.run.artifact import Artifact, Part, Source
from xlr.run.context import Context, require
from xlr.run.files import atomic_path, write_json
from xlr.run.languagenames import language_names
from xlr.run.reuse import Kept
from xlr.sampling.responses import row_seed
from xlr.settings.config import Config, JudgeConfig
from xlr.settings.deciding import deciding

# Takes the place of an iteration in the seed, so that the order of the answers is the same for every model.
_ALL_MODELS = -1


class _Judge(Protocol):
    """The interface of a judge's backend; backends are modules."""

    def require_usable(self, judge: JudgeConfig, shortest: Mapping[str, list[Message]]) -> None:
        """Check the backend's requirements before anything else is computed.

        Args:
            shortest: by the name of the prompt, the question about it with empty answers.

        Raises:
            UserError: a requirement is not met.
        """

    def ask(
        self, context: Context, target: Artifact, label: str, questions: Sequence[list[Message]], langs: Sequence[str]
    ) -> tuple[list[Verdict], int]:
        """Ask the judge.

        Args:
            target: the artefact being made; unfinished work is kept among its pieces.
            label: the name of the step in the progress display.
            langs: the language of each question.

        Returns:
            A verdict for each question, in order, and the number of questions that were asked now.

        Raises:
            UserError: the judge cannot be asked. Verdicts given so far are kept.
        """


_BACKENDS: dict[str, _Judge] = {"openai": endpoint, "transformers": localjudge}


@dataclass(frozen=True)
class _Comparison:
    """The two answers to one prompt."""

    prompt: Prompt
    baseline: str
    model: str
    preference: float | None
    """The preference if no judge is needed, else None; see `_undisputed`."""
    orders: tuple[bool, ...]
    """For each question to the judge, True if the model's answer comes first. Empty if no judge is needed."""


def iterations(config: Config) -> list[ModelKey]:
    """All models but the baseline, if there is a judge and it has answers."""
    if not config.judge.model or config.evaluate.prompts is None:
        return []
    return [model for model in config.evaluated_models if model != config.judge.baseline]


def check(context: Context) -> None:
    """Check the judge's settings and files before anything is computed.

    Raises:
        UserError: a setting or a file is wrong.
    """
    from xlr.evaluation import difficulty  # imports torch

    judge, name = context.config.judge, context.config.language_name
    template = question.load(judge.template)
    shortest = {
        f"{prompt.lang} {prompt.id!r}": question.fill(template, prompt.transcript, "", "", name(prompt.lang))
        for prompt in context.questions
    }
    if judge.backend == "transformers":
        judge = judge.model_copy(update={"model": context.located(str(judge.model))})
    _BACKENDS[judge.backend].require_usable(judge, shortest)
    difficulty.load(judge.difficulty)
    if context.config.baseline_model is None:
        baseline.load(context)


def artifact(context: Context, iteration: ModelKey) -> Artifact:
    """The judgements of a model's answers, with the settings and inputs that decide them."""
    config, judge, langs = context.config, context.config.judge, context.config.evaluated_languages
    answers = context.run.iteration(iteration) / "eval"

    def inputs(lang: str | None = None) -> dict[str, Source]:
        found: dict[str, Source] = {"answers": Part(context.run.path, answers, lang) if lang else answers}
        found |= baseline.inputs(context, lang)
        found |= language_names(config, [lang] if lang else langs)
        found |= {name: path for name, path in (("template", judge.template), ("difficulty", judge.difficulty)) if path}
        if judge.backend == "transformers":
            found["judge"] = context.located(judge.model or "")
        return found

    own: dict[str, Any] = {"languages": list(langs)}
    if judge.backend == "transformers":
        own |= {"model.dtype": config.model.dtype, "score.batch_tokens": config.score.batch_tokens}
    if not judge.both_orders:
        own["seed"] = config.seed
    folder = context.run.judged(iteration, "judgements", judge.folder)
    # The languages of reference outputs do not stand on their own: the name of their model depends on all.
    parts = {lang: inputs(lang) for lang in langs} if config.baseline_model is not None else {}
    return Artifact(context.run.path, folder, "judge", deciding(judge, "judge") | own, inputs(), parts)


def make(context: Context, iteration: ModelKey) -> JudgeFacts:
    """Judge one model's answers.

    Raises:
        UserError: answers are missing, the reference outputs do not fit, the judge cannot be asked, or it gave no
            verdict on most comparisons.
    """
    from xlr.evaluation import winrates  # imports torch

    _require_answers(context, iteration)
    judge, target = context.config.judge, artifact(context, iteration)
    others, answers, kept = baseline.load(context), baseline.model_answers(context, iteration), Kept(target)
    compared = [prompt for prompt in context.questions if prompt.lang not in kept.languages]
    comparisons = [_compare(context.config, prompt, others, answers) for prompt in compared]
    verdicts, asked = _ask(context, target, f"judge {iteration}", comparisons)
    generators = (others.generator, answers.generator)
    rows = [_row(one, own, generators, judge.name) for one, own in zip(comparisons, verdicts, strict=True)]
    _require_judged(rows, verdicts, judge.name)
    figures = _write(context, target, rows, kept)
    facts = _facts(judge, others.generator, comparisons, verdicts, asked, figures)
    tokens = {"asked": facts["prompt_tokens"], "answered": facts["completion_tokens"]}
    target.finish(len(context.questions), facts, context.clock, tokens)
    target.remove_pieces()
    winrates.show(figures)
    return facts


def _require_answers(context: Context, iteration: ModelKey) -> None:
    """Check that the model, and the baseline if it is a model of this run, have finished evaluations."""
    other = context.config.baseline_model
    for key in (iteration, *([] if other is None else [other])):
        require(evaluation.artifact(context, key), f"xlr evaluate {context.run.path} --iteration {key}")


def _compare(config: Config, prompt: Prompt, others: Answers, answers: Answers) -> _Comparison:
    key = (prompt.lang, prompt.id)
    preference = _undisputed(others.by_prompt[key], answers.by_prompt[key])
    orders: tuple[bool, ...] = (False, True) if config.judge.both_orders else (_drawn_order(config.seed, prompt),)
    return _Comparison(
        prompt, others.by_prompt[key], answers.by_prompt[key], preference, orders if preference is None else ()
    )


def _undisputed(baseline_answer: str, model_answer: str) -> float | None:
    """The preference without a judge: equal answers tie, an empty answer loses; None if a judge must decide."""
    baseline_text, model_text = baseline_answer.strip(), model_answer.strip()
    if baseline_text == model_text:
        return 0.5
    if not baseline_text or not model_text:
        return float(bool(model_text))
    return None


def _drawn_order(seed: int, prompt: Prompt) -> bool:
    """True if the model's answer comes first, drawn at random: the same for every model."""
    return bool(row_seed(seed, _ALL_MODELS, prompt.lang, prompt.id, 0) % 2)


def _ask(
    context: Context, target: Artifact, label: str, comparisons: Sequence[_Comparison]
) -> tuple[list[list[Verdict]], int]:
    """The verdicts of each comparison, one an order, and the number of questions that were asked now."""
    judge = context.config.judge
    template = question.load(judge.template)
    asked = [(one, swapped) for one in comparisons for swapped in one.orders]
    questions = [
        _question(template, one, swapped, context.config.language_name(one.prompt.lang)) for one, swapped in asked
    ]
    verdicts, new = _BACKENDS[judge.backend].ask(
        context, target, label, questions, [one.prompt.lang for one, _ in asked]
    )
    remaining = iter(verdicts)
    return [list(islice(remaining, len(one.orders))) for one in comparisons], new


def _question(template: list[Message], one: _Comparison, swapped: bool, language: str) -> list[Message]:
    first, second = (one.model, one.baseline) if swapped else (one.baseline, one.model)
    return question.fill(template, one.prompt.transcript, first, second, language)


def _row(one: _Comparison, verdicts: Sequence[Verdict], generators: tuple[str, str], annotator: str) -> AnnotationRow:
    """A row of AlpacaEval's annotations; `preferences` holds the preference of each order, output_1 first."""
    sides = [
        1 - verdict.preference if swapped else verdict.preference
        for swapped, verdict in zip(one.orders, verdicts, strict=True)
    ]
    preference = one.preference if one.preference is not None else sum(sides) / len(sides)
    return {
        "id": one.prompt.id,
        "lang": one.prompt.lang,
        "instruction": one.prompt.instruction,
        "output_1": one.baseline,
        "generator_1": generators[0],
        "output_2": one.model,
        "generator_2": generators[1],
        "annotator": annotator,
        "preference": _scale(preference),
        "preferences": list(map(_scale, sides)),
    }


def _scale(preference: float) -> float | None:
    """A preference on AlpacaEval's scale from 1 to 2, None if there is none."""
    return None if math.isnan(preference) else 1 + preference


def _require_judged(rows: Sequence[AnnotationRow], verdicts: Sequence[Sequence[Verdict]], judge: str) -> None:
    undecided = sum(row["preference"] is None for row in rows)
    if 2 * undecided > len(rows):
        reply = next(verdict.answer for own in verdicts for verdict in own if math.isnan(verdict.preference))
        raise UserError(
            f"judge {judge}: gave no verdict on {undecided} of {len(rows)} comparisons; one of its replies is "
            f"{reply[:200]!r}. Set another judge.model, judge.preference or judge.template"
        )


def _write(context: Context, target: Artifact, rows: Sequence[AnnotationRow], kept: Kept) -> WinRates:
    """Write the annotations and the win rates computed from them; returns the win rates.

    Args:
        kept: languages that were taken over from another run.
    """
    from xlr.evaluation import annotations, difficulty, winrates  # import torch

    table = difficulty.load(context.config.judge.difficulty)
    with atomic_path(target.folder) as folder:
        (folder / "annotations").mkdir(parents=True)
        for lang in context.config.evaluated_languages:
            if lang not in kept.languages:
                write_json(folder / "annotations" / f"{lang}.json", [row for row in rows if row["lang"] == lang])
        kept.link_into(folder)
        figures = winrates.measure(annotations.read(folder / "annotations"), None, table)
        figures["annotations"] = "annotations"  # the content must not depend on the folder
        write_json(folder / "winrates.json", figures)
    return figures


def _facts(
    judge: JudgeConfig,
    baseline_name: str,
    comparisons: Sequence[_Comparison],
    verdicts: Sequence[Sequence[Verdict]],
    asked: int,
    figures: WinRates,
) -> JudgeFacts:
    given = [verdict for own in verdicts for verdict in own]
    prompt_tokens = sum(verdict.prompt_tokens for verdict in given)
    completion_tokens = sum(verdict.completion_tokens for verdict in given)
    return {
        "judge": judge.name,
        "baseline": baseline_name,
        "questions": len(given),
        "asked": asked,
        "undecided": sum(math.isnan(verdict.preference) for verdict in given),
        "without_judge": sum(one.preference is not None for one in comparisons),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost": cost(judge, prompt_tokens, completion_tokens),
        "win_rate": figures["win_rate"],
        "length_controlled_win_rate": figures["length_controlled_win_rate"],
    }
