"""The reward `judge`: a grade from 1 to 9 that the judge of the run gives to each response."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from xlr import detection
from xlr.data.quality import repetition
from xlr.errors import UserError
from xlr.judging import endpoint, localjudge, question
from xlr.records import DType, Example, Message, Prompt, Score, Scored, Verdict
from xlr.rewarding.candidates import Candidate
from xlr.run.artifact import Artifact, Source
from xlr.run.context import Context
from xlr.run.rows import write_rows
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.versions import DETECTORS, versions
from xlr.work.logps import Scoring, resumable_logps
from xlr.work.pieces import Finished, claimed
from xlr.work.shards import Shard

WITHOUT_GRADE = "no answer after thinking", "the judge gave no grade, or the question is longer than it reads"
"""Why a response has nothing to grade, and why it has no grade."""
_DECIDING = ("backend", "model", "preference", "temperature", "max_tokens", "top_logprobs", "extra_body")


def settings(config: Config) -> dict[str, Any]:
    """The settings of the judge that decide grades."""
    own = deciding(config.judge, "judge")
    if config.judge.backend == "transformers":
        del own["judge.model"]  # its content is an input
    return {f"judge.{key}": own[f"judge.{key}"] for key in _DECIDING if f"judge.{key}" in own}


def inputs(context: Context) -> dict[str, Source]:
    """The judge's model, if the workers open it, and the template of the question, if it is a file."""
    found: dict[str, Source] = {}
    if context.config.judge.backend == "transformers":
        found["judge"] = _judge(context)
    if context.config.score.grading_template:
        found["grading template"] = context.config.score.grading_template
    return found


def _judge(context: Context) -> str:
    return context.located(str(context.config.judge.model))


def check(context: Context, prompts: Sequence[Prompt]) -> None:
    """Check early that the judge can be asked.

    Raises:
        UserError: it cannot, or a question is longer than it reads even without the answer.
    """
    judge, name = context.config.judge, context.config.language_name
    template = question.load_grading(context.config.score.grading_template)
    if judge.backend == "openai":
        endpoint.require_usable(judge)
        return
    shortest = {
        f"{prompt.lang} {prompt.id!r}": question.fill_grading(template, prompt.transcript, "", name(prompt.lang))
        for prompt in prompts
    }
    localjudge.require_usable(judge.model_copy(update={"model": _judge(context)}), shortest, question.GRADES)


def grade_shards(
    context: Context,
    target: Artifact,
    shards: Sequence[Shard[Sequence[Candidate]]],
    label: str,
    dtype: DType,
    pieces: str,
) -> Finished[Score]:
    """The judge's grade of every candidate's answer; candidates without one have no row.

    Args:
        dtype: the precision of a judge in the workers.
        pieces: name of the folder of pieces beside the artefact.
    """
    template = question.load_grading(context.config.score.grading_template)
    transcripts = {(own.lang, own.id): own.transcript for prompts in context.prompts.values() for own in prompts}

    def asked(candidates: Sequence[Candidate]) -> list[list[Message]]:
        name = context.config.language_name
        rows = ((one.row, one.answer) for one in candidates)
        return [
            question.fill_grading(template, transcripts[row.lang, row.id], answer, name(row.lang))
            for row, answer in rows
        ]

    if context.config.judge.backend == "transformers":
        return _by_workers(context, target, shards, asked, label, dtype, pieces)
    return _by_endpoint(context, target, shards, asked, label, pieces)


def _by_workers(
    context: Context,
    target: Artifact,
    shards: Sequence[Shard[Sequence[Candidate]]],
    asked: Callable[[Sequence[Candidate]], list[list[Message]]],
    label: str,
    dtype: DType,
    pieces: str,
) -> Finished[Score]:
    encoder = localjudge.encoder_of(_judge(context))
    replies, room = localjudge.replies(encoder, question.GRADES), localjudge.room(encoder, question.GRADES)

    def plan(candidates: Sequence[Candidate]) -> Scoring[Score]:
        every = zip(candidates, map(encoder.prompt_of, asked(candidates)), strict=True)
        short = [(one, prompt) for one, prompt in every if len(prompt) <= room]

        def to_rows(item: int, scored: Scored) -> list[Score]:
            logps = dict(zip(question.GRADES.values, (logp for (logp,) in scored.logps), strict=True))
            return [_score(short[item][0], question.weighted(logps, question.GRADES), scored.languages[0])]

        return Scoring(
            [Example(prompt, replies) for _, prompt in short],
            [[one.row.key] for one, _ in short],
            to_rows,
            [[(one.row.lang, one.answer)] for one, _ in short],
            sorted({one.row.lang for one, _ in short}),
        )

    plans = [shard.replanned(plan) for shard in shards]
    return resumable_logps(context, target, pieces, [encoder.name], dtype, Score, plans, label, "grades")


def _by_endpoint(
    context: Context,
    target: Artifact,
    shards: Sequence[Shard[Sequence[Candidate]]],
    asked: Callable[[Sequence[Candidate]], list[list[Message]]],
    label: str,
    pieces: str,
) -> Finished[Score]:
    """Shard by shard. What was asked before is in the cache of verdicts, so nothing is paid for twice."""
    if not shards:
        return Finished(Score, {}, {})
    config, heard = context.config, False
    finished = claimed(context, target, pieces, Score, shards, versions(("xlr", *DETECTORS)))
    for number, shard in enumerate(shards, 1):
        if finished.find(shard.name) is not None:
            heard = True
            continue
        candidates = shard.plan()
        langs = [one.row.lang for one in candidates]
        named = f"{label}, {number} of {len(shards)}"
        verdicts, _ = endpoint.ask(context, target, named, asked(candidates), langs, question.GRADES, heard)
        heard = True
        _require_grades(config.judge.model, verdicts)
        texts = ((one.row.lang, one.answer) for one in candidates)
        rows = [
            _score(one, verdict.preference, language)
            for one, verdict, language in zip(
                candidates, verdicts, detection.detect(texts, config.all_languages), strict=True
            )
            if not math.isnan(verdict.preference)
        ]
        write_rows(finished.files[shard.name], Score, rows, finished.stamps[shard.name][-1])
    return finished


def _require_grades(judge: str | None, verdicts: Sequence[Verdict]) -> None:
    """Check that the judge understands the question.

    Raises:
        UserError: it gave most responses no grade.
    """
    undecided = [verdict for verdict in verdicts if math.isnan(verdict.preference)]
    if 2 * len(undecided) > len(verdicts):
        raise UserError(
            f"judge {judge}: gave no grade to {len(undecided)} of {len(verdicts)} responses; one of its replies is "
            f"{undecided[0].answer[:200]!r}. Set another judge.model, judge.preference or score.grading_template"
        )


def _score(candidate: Candidate, value: float, language: str) -> Score:
    """The row of a candidate.

    Args:
        value: the grade, from 0 to 1.
    """
    row = candidate.row
    return Score(
        row.id,
        row.lang,
        row.sample,
        row.response,
        row.finish_reason,
        scored_text=candidate.answer,
        logp_policy=None,
        logp_reference=None,
        reward=question.LOWEST + (question.HIGHEST - question.LOWEST) * value,
        num_tokens=len(row.token_ids),
        num_chars=len(candidate.answer),
        detected_lang=language,
        repetition=repetition(row.token_ids),
    )
