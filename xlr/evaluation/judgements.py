"""Stage 6: held-out answers compared with a baseline's by a judge model.

Reads the answers of the evaluation, and the baseline's or reference outputs; writes `judgements/` beside `eval/`:
`annotations/{lang}.json` in AlpacaEval's form and `winrates.json`. Run alone with `xlr judge RUN --iteration t`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from xlr import languages
from xlr.config import JudgeConfig, settings
from xlr.data.jsonfiles import language_source, read_objects
from xlr.errors import UserError
from xlr.evaluation import answers as evaluation
from xlr.evaluation import endpoint, localjudge
from xlr.evaluation import question as judgeprompt
from xlr.records import Message, Prompt, Response, Verdict
from xlr.rewarding.responses import row_seed
from xlr.run.artifact import Artifact, Iteration, atomic_path, read_json, read_rows, write_json
from xlr.run.context import Context, require


class _Judge(Protocol):
    """What asks judges of one kind; a module."""

    def require_usable(self, judge: JudgeConfig) -> None:
        """Find what is lacking before anything else is computed.

        Raises:
            UserError: naming it.
        """

    def ask(
        self, context: Context, target: Artifact, label: str, questions: Sequence[list[Message]], langs: Sequence[str]
    ) -> tuple[list[Verdict], int]:
        """The verdict on every question, in their order, and how many were asked now.

        Args:
            target: whose pieces hold what must survive an interruption.
            label: what the user is shown.
            langs: the language of each question.

        Raises:
            UserError: the judge cannot be asked. All verdicts so far are kept.
        """


_BACKENDS: dict[str, _Judge] = {"openai": endpoint, "transformers": localjudge}


@dataclass(frozen=True)
class _Comparison:
    """The baseline's answer and the model's to one instruction, and in which orders the judge sees them."""

    prompt: Prompt
    answers: tuple[str, str]
    orders: tuple[bool, ...]  # swapped or not

    @cached_property
    def known(self) -> float | None:
        """The preference that needs no judge: a tie of equal answers, the defeat of an empty one."""
        baseline, model = (answer.strip() for answer in self.answers)
        if baseline == model:
            return 0.5
        if not baseline or not model:
            return float(bool(model))
        return None


def check(context: Context) -> None:
    """Find bad input before anything is computed.

    Raises:
        UserError: naming it.
    """
    from xlr.evaluation import difficulty  # imports torch

    judge = context.config.judge
    _BACKENDS[judge.backend].require_usable(judge)
    judgeprompt.load(judge.template)
    difficulty.load(judge.difficulty)
    if _baseline(context) is None:
        reference_outputs(str(judge.baseline), context.questions)


def _baseline(context: Context) -> Iteration | None:
    """The model of this run that is the baseline, or None where it is a folder of reference outputs."""
    baseline = context.config.judge.baseline
    return baseline if isinstance(baseline, int) or baseline in context.config.evaluate.models else None


def artifact(context: Context, iteration: Iteration) -> Artifact:
    """The judgements of a model's answers and what decides them."""
    config, baseline = context.config, _baseline(context)
    inputs: dict[str, str | Path] = {"answers": context.run.iteration(iteration) / "eval"}
    if baseline is not None:
        inputs["baseline"] = context.run.iteration(baseline) / "eval"
    else:
        inputs |= {
            f"baseline {lang}": language_source(str(config.judge.baseline), lang) for lang in config.evaluated_languages
        }
    for name in ("template", "difficulty"):
        if path := getattr(config.judge, name):
            inputs[name] = path
    own: dict[str, Any] = {"languages": list(config.evaluated_languages)}
    if config.judge.backend == "transformers":
        inputs["judge"] = config.judge.model or ""
        own |= {"model.dtype": config.model.dtype, "score.batch_tokens": config.score.batch_tokens}
    if not config.judge.both_orders:
        own |= {"seed": config.seed}
    folder = context.run.iteration(iteration) / "judgements"
    return Artifact(folder, "judge", settings(config.judge, "judge") | own, inputs)


def make(context: Context, iteration: Iteration) -> dict[str, Any]:
    """Judge one model's answers.

    Raises:
        UserError: reference outputs that do not fit, or what the judge's backend raises.
    """
    from xlr.evaluation import annotations, difficulty  # import torch

    judge, baseline, target = context.config.judge, _baseline(context), artifact(context, iteration)
    for model in (iteration, *([] if baseline is None else [baseline])):
        require(evaluation.artifact(context, model), f"xlr evaluate {context.run.path} --iteration {model}")
    comparisons, names = _comparisons(context, iteration)
    template = judgeprompt.load(judge.template)
    judge_name = Path(str(judge.model)).name if judge.backend == "transformers" else str(judge.model)
    asked = [
        (comparison, swapped) for comparison in comparisons if comparison.known is None for swapped in comparison.orders
    ]
    given, paid = _BACKENDS[judge.backend].ask(
        context,
        target,
        f"judge {iteration}",
        [_question(template, comparison, swapped) for comparison, swapped in asked],
        [comparison.prompt.lang for comparison, _ in asked],
    )
    each = iter(given)
    judged = [[] if one.known is not None else [next(each) for _ in one.orders] for one in comparisons]
    annotated = [_row(one, own, names, judge_name) for one, own in zip(comparisons, judged, strict=True)]
    with atomic_path(target.folder) as folder:
        (folder / "annotations").mkdir(parents=True)
        for lang in context.config.evaluated_languages:
            write_json(folder / "annotations" / f"{lang}.json", [row for row in annotated if row["lang"] == lang])
        _require_judged(annotated, given, judge_name)
        table = difficulty.load(judge.difficulty)
        figures = annotations.measure(annotations.read(folder / "annotations"), None, table)
        figures |= {"annotations": str(target.folder / "annotations")}
        write_json(folder / "winrates.json", figures)
    tokens = (sum(one.prompt_tokens for one in given), sum(one.completion_tokens for one in given))
    facts = {
        "judge": judge_name,
        "baseline": names[0],
        "questions": len(given),
        "asked": paid,
        "undecided": sum(math.isnan(one.preference) for one in given),
        "without_judge": sum(one.known is not None for one in comparisons),
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "cost": endpoint.cost(judge, *tokens),
        "win_rate": figures["win_rate"],
        "length_controlled_win_rate": figures["length_controlled_win_rate"],
    }
    target.finish(len(annotated), facts, context.clock)
    target.remove_pieces()
    annotations.show(figures)
    return facts


def _comparisons(context: Context, iteration: Iteration) -> tuple[list[_Comparison], tuple[str, str]]:
    """All comparisons, and the names of the baseline and of the model."""
    config, baseline = context.config, _baseline(context)
    answers, model_name = _answers(context, iteration)
    if baseline is not None:
        others, baseline_name = _answers(context, baseline)
    else:
        others, baseline_name = reference_outputs(str(config.judge.baseline), context.questions)
    pairs = [
        _Comparison(
            prompt,
            (others[prompt.lang, prompt.id], answers[prompt.lang, prompt.id]),
            (False, True) if config.judge.both_orders else (_drawn(config.seed, prompt),),
        )
        for prompt in context.questions
    ]
    return pairs, (baseline_name, model_name)


def _drawn(seed: int, prompt: Prompt) -> bool:
    """Whether the one order that is asked is the swapped one: by lot, the same for every model."""
    return bool(row_seed(seed, -1, prompt.lang, prompt.id, 0) % 2)


def _answers(context: Context, iteration: Iteration) -> tuple[dict[tuple[str, str], str], str]:
    """(lang, id) -> answer, and how annotations name the model."""
    folder = context.run.iteration(iteration)
    answers = read_rows(folder / "eval" / "responses", Response)
    return {(row.lang, row.id): row.response for row in answers}, f"{context.run.path.name}/{folder.name}"


def reference_outputs(path: str, prompts: Sequence[Prompt]) -> tuple[dict[tuple[str, str], str], str]:
    """(lang, id) -> output of a folder of `{lang}.json` or `{lang}.jsonl` in AlpacaEval's form, and who made them.

    Rows belong to the prompt of their `id` (or `instruction_id`), or of their instruction where they have none.

    Raises:
        UserError: naming the row that is broken, or the instruction that has no output.
    """
    found: dict[tuple[str, str], str] = {}
    makers: set[str] = set()
    for lang in dict.fromkeys(prompt.lang for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.lang == lang]
        outputs = _read_outputs(path, lang, own, makers)
        lacking = next((prompt for prompt in own if prompt.id not in outputs), None)
        if lacking is not None:
            raise UserError(
                f"{language_source(path, lang)}: has no output for the instruction {lacking.id!r} "
                f"({lacking.instruction[:60]!r}); judge.baseline needs one for each of evaluate.prompts: add it, or "
                "leave the instruction out everywhere"
            )
        found |= {(lang, key): output for key, output in outputs.items()}
    return found, makers.pop() if len(makers) == 1 else Path(path).name


def _read_outputs(path: str, lang: str, prompts: Sequence[Prompt], makers: set[str]) -> dict[str, str]:
    by_id = {prompt.id: prompt for prompt in prompts}
    by_text = {prompt.instruction: prompt for prompt in prompts}
    outputs: dict[str, str] = {}
    file = language_source(path, lang)
    if not isinstance(file, Path):
        raise UserError(
            f"judge.baseline {path}: has no {lang}.json with reference outputs; it is a folder with one a language, an "
            "iteration, or one of evaluate.models"
        )
    for place, row in read_objects(file, "an object with instruction and output"):
        key, instruction, output = row.get("instruction_id", row.get("id")), row.get("instruction"), row.get("output")
        if not isinstance(output, str) or not output.strip():
            raise UserError(f"{place}: the output is empty; fill it in, or remove the row and its instruction")
        prompt = by_text.get(str(instruction)) if key is None else by_id.get(str(key))
        if prompt is None:
            continue  # reference outputs may be of more instructions
        if instruction is not None and instruction != prompt.instruction:
            raise UserError(
                f"{place}: its instruction is not that of {prompt.id!r} in evaluate.prompts; these reference outputs "
                "belong to other instructions"
            )
        outputs[prompt.id] = output
        makers.add(str(row.get("generator", Path(path).name)))
    return outputs


def _question(template: list[Message], comparison: _Comparison, swapped: bool) -> list[Message]:
    first, second = reversed(comparison.answers) if swapped else comparison.answers
    prompt = comparison.prompt
    return judgeprompt.fill(template, prompt.instruction, first, second, languages.name(prompt.lang))


def _row(one: _Comparison, judged: Sequence[Verdict], names: tuple[str, str], judge: str) -> dict[str, Any]:
    """A row of AlpacaEval's annotations; its `preferences` are those of each order asked, in the row's own terms."""
    sides = [
        1 - verdict.preference if swapped else verdict.preference
        for swapped, verdict in zip(one.orders, judged, strict=False)
    ]
    preference = one.known if one.known is not None else sum(sides) / len(sides)
    return {
        "id": one.prompt.id,
        "lang": one.prompt.lang,
        "instruction": one.prompt.instruction,
        "output_1": one.answers[0],
        "generator_1": names[0],
        "output_2": one.answers[1],
        "generator_2": names[1],
        "annotator": judge,
        "preference": _scale(preference),
        "preferences": list(map(_scale, sides)),
    }


def _scale(preference: float) -> float | None:
    """AlpacaEval's 1 to 2 of a probability, null where there is none."""
    return None if math.isnan(preference) else 1 + preference


def _require_judged(annotated: Sequence[Mapping[str, Any]], given: Sequence[Verdict], judge: str) -> None:
    undecided = sum(row["preference"] is None for row in annotated)
    if 2 * undecided > len(annotated):
        said = next(verdict.answer for verdict in given if math.isnan(verdict.preference))
        raise UserError(
            f"judge {judge}: gave no verdict on {undecided} of {len(annotated)} comparisons, but for example "
            f"{said[:200]!r}; take another judge.model, judge.preference or judge.template"
        )


def read(context: Context, iteration: Iteration) -> dict[str, Any] | None:
    """The win rates of a model, if its judgements are finished."""
    file = context.run.iteration(iteration) / "judgements" / "winrates.json"
    return read_json(file) if file.is_file() else None
