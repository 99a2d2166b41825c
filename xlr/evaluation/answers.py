"""Stage 5: how a model answers held-out prompts, and whether its implicit reward agrees with held-out preferences.

Reads pi^t (t = 0 is the start) or a model of `evaluate.models`, and the held-out sets; writes `RUN/iter{t}/eval/` or
`RUN/models/{name}/eval/`: responses, scores and `eval.json`. Run alone with
`xlr evaluate RUN --iteration t`, or with a name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from xlr.chat.format import chat_settings
from xlr.data.preferencerows import preference_sources
from xlr.data.prompts import sources
from xlr.detection import detector, is_in
from xlr.evaluation.facts import AnswerFacts, EvaluationFacts
from xlr.labelled import preferences
from xlr.languages import ENGLISH
from xlr.records import INITIAL, START, ModelKey, PreferenceLogps, Prompt, Question, Response, Score
from xlr.rewarding.candidates import candidate, score_candidates, scoring_conversation
from xlr.rewarding.scores import require_scorable
from xlr.rewarding.scoretotals import reward_facts
from xlr.run.artifact import Artifact, Part, Source
from xlr.run.context import Context, require
from xlr.run.files import atomic_path, write_json
from xlr.run.languagenames import language_names
from xlr.run.manifests import rows_of
from xlr.run.reuse import Kept
from xlr.run.rows import require_each_once, write_rows, write_shards
from xlr.sampling import room
from xlr.sampling.responses import Sampling
from xlr.settings.config import Config
from xlr.settings.deciding import deciding
from xlr.settings.generateconfig import GenerateConfig
from xlr.work.dropped import Dropped

_Row = TypeVar("_Row", Response, Score, PreferenceLogps)

# All models draw with the same random numbers, so that their answers differ by the model alone.
_SEED_ITERATION = -1
# Settings in the section that decide another stage, or that are recorded under another name.
_OF_OTHERS = ("evaluate.languages", "evaluate.checked", "evaluate.turns", "evaluate.benchmarks")


def iterations(config: Config) -> list[ModelKey]:
    """All models, if there is something to evaluate them on."""
    if not config.evaluate.prompts and not config.evaluate.preferences:
        return []
    return config.evaluated_models


def artifact(context: Context, model: ModelKey) -> Artifact:
    """The evaluation of a model and what decides it."""
    config, section = context.config, context.config.evaluate
    measured = context.pinned(section.preferences) if isinstance(model, int) else None
    preferred = preference_sources(measured) if measured else {}
    langs = dict.fromkeys([*(config.evaluated_languages if section.prompts else ()), *preferred])

    def inputs(lang: str | None = None) -> dict[str, Source]:
        found: dict[str, Source] = {"model": context.model(model), "reference": context.model(INITIAL)}
        if section.prompts and (lang is None or lang in config.evaluated_languages):
            found |= sources(context.pinned(section.prompts), config.evaluated_languages if lang is None else [lang])
            found["reward policy"] = context.model(START)
        found |= preferences.inputs(preferred, lang)
        found |= language_names(config, langs if lang is None else [lang])
        if model == START and "model" in config.score.weights and (preferred if lang is None else lang in preferred):
            found["reward model"] = context.reward_model
        if model != START:
            found["start"] = Part(context.run.path, _of_start(context), lang) if lang else _of_start(context)
        return found

    return Artifact(
        context.run.path,
        context.run.iteration(model) / "eval",
        "evaluate",
        {name: value for name, value in deciding(section, "evaluate").items() if not name.startswith(_OF_OTHERS)}
        | _of_translations(config)
        | {
            "seed": config.seed,
            "languages": list(config.evaluated_languages),
            "model.dtype": config.model.dtype,
            "generate.backend": config.generate.backend,
            "generate.tensor_parallel_size": config.generate.tensor_parallel_size,
            "generate.batch_size": config.generate.batch_size,
            "score.batch_tokens": config.score.batch_tokens,
            "score.dtype": config.score.dtype,
            "score.max_length": config.score.max_length,
            **chat_settings(config.model),
        },
        inputs(),
        {lang: inputs(lang) for lang in langs},
    )


def _of_translations(config: Config) -> dict[str, Any]:
    """The settings that decide held-out preferences under the reward `translate`, if the run has both."""
    if not config.evaluate.preferences or "translate" not in config.score.weights:
        return {}
    return {
        "score.translation": config.score.translation,
        "generate.max_new_tokens": config.generate.max_new_tokens,
    }


def check(context: Context) -> None:
    """Check early that the held-out sets and the models beside the iterations can be read.

    Raises:
        UserError: naming what cannot, or what can exceed a model's positions.
    """
    from xlr.model.checks import require_model  # imports torch

    section = context.config.evaluate
    for name in section.models:
        require_model(context.model(name), context.encoder_of(name).tokenizer)
        _require_room(context, name)
    _require_room(context, START)
    if section.prompts:
        english, new_tokens = context.held_out[ENGLISH], section.max_new_tokens
        require_scorable(context, "crosslingual", context.questions, english, new_tokens)
    if section.preferences:
        preferences.check(context, context.pinned(section.preferences))


def _require_room(context: Context, model: ModelKey) -> None:
    """Check that a model's answers to the held-out prompts fit its positions.

    Raises:
        UserError: they may not.
    """
    prompts, new_tokens = room.named(context.questions), context.config.evaluate.max_new_tokens
    positions = room.positions_of(context, model)
    room.require_room(context.encoder_of(model), prompts, positions, new_tokens, "evaluate.max_new_tokens")


def make(context: Context, model: ModelKey) -> EvaluationFacts:
    """Evaluate one model."""
    section = context.config.evaluate
    context.require_model(model)
    target = artifact(context, model)
    kept, dropped = Kept(target), Dropped()
    langs = [lang for lang in context.config.evaluated_languages if lang not in kept.languages]
    facts: EvaluationFacts = {"iteration": model, "languages": {}, "dropped": {}}
    answers: list[Response] = []
    scored: list[Score] = []
    preferred: list[PreferenceLogps] = []
    if model != START:
        require(artifact(context, START), f"xlr evaluate {context.run.path} --iteration 0")
    asked = [prompt for prompt in context.questions if prompt.lang in langs]
    if section.prompts:
        answers, scored = _answer(context, target, model, asked, dropped)
        start = scored if model == START else rows_of(_of_start(context), Score, "scores/*")
        facts["dropped"] = dropped.counts()
        facts["languages"] = {
            lang: _language_facts(
                lang,
                [row for row in answers if row.lang == lang],
                [row for row in scored if row.lang == lang],
                {row.id: row.reward for row in start if row.lang == lang},
            )
            for lang in langs
        }
    if isinstance(model, int) and section.preferences:
        before = [] if model == START else rows_of(_of_start(context), PreferenceLogps, "preferences/*")
        given = context.pinned(section.preferences)
        preferred, facts["preferences"] = preferences.measure(context, target, given, model, before, kept.languages)
    _add_kept(facts, kept, context.config.evaluated_languages)
    with atomic_path(target.folder) as folder:
        folder.mkdir()
        _write(folder / "responses", Response, answers)
        _write(folder / "scores", Score, scored)
        _write(folder / "preferences", PreferenceLogps, preferred)
        require_each_once(folder / "responses", [(prompt.lang, prompt.id, "0") for prompt in asked])
        filled = {row.key for row in answers if row.response.strip()}
        require_each_once(folder / "scores", filled - dropped.keys)
        kept.link_into(folder)
        if context.questions:
            asked_rows = [Question(one.id, one.lang, one.instruction) for one in context.questions]
            write_rows(folder / "prompts.parquet", Question, asked_rows)
        write_json(folder / "eval.json", facts)
    target.finish(len(context.questions), facts, context.clock, {"scored": sum(row.num_tokens for row in scored)})
    target.remove_pieces()
    return facts


def _write(folder: Path, row_type: type[_Row], rows: Sequence[_Row]) -> None:
    """Write rows as files of their languages; no folder if there are none."""
    for lang in dict.fromkeys(row.lang for row in rows):
        folder.mkdir(exist_ok=True)
        write_shards(folder, lang, row_type, [row for row in rows if row.lang == lang])


def _add_kept(facts: EvaluationFacts, kept: Kept, langs: Sequence[str]) -> None:
    """Add the facts of languages that were taken over from another run, in the order that one run gives them."""
    taken = {
        name: {lang: own for lang, own in kept.facts.get(name, {}).items() if lang in kept.languages}
        for name in ("languages", "dropped", "preferences")
    }
    answered = facts["languages"] | taken["languages"]
    facts["languages"] = {lang: answered[lang] for lang in langs if lang in answered}
    facts["dropped"] = dict(sorted((facts["dropped"] | taken["dropped"]).items()))
    if "preferences" in facts:
        facts["preferences"] = dict(sorted((facts["preferences"] | taken["preferences"]).items()))


def _of_start(context: Context) -> Path:
    """The folder of pi^0's evaluation, which the others are compared with."""
    return context.run.iteration(START) / "eval"


def _answer(
    context: Context, target: Artifact, model: ModelKey, asked: Sequence[Prompt], dropped: Dropped
) -> tuple[list[Response], list[Score]]:
    """One answer to each prompt, and its reward log pi^0 - log pi_I, which is the same measure for all models.

    Args:
        dropped: gets the answers that cannot be scored, but for empty ones.
    """
    _require_room(context, model)
    section = context.config.evaluate
    generate = GenerateConfig(
        temperature=section.temperature,
        top_p=section.top_p,
        max_new_tokens=section.max_new_tokens,
        batch_size=context.config.generate.batch_size,
    )
    wanted = [(prompt, 0) for prompt in asked]
    encoder = context.encoder_of(model)
    sampling = Sampling(context, context.model(model), generate, _SEED_ITERATION, encoder)
    shards = sampling.shards(wanted, {})
    answers = sampling.compute(target, "responses", shards, f"evaluate {model}: answer").rows()
    english = {prompt.id: prompt for prompt in context.held_out[ENGLISH]}
    name, thinking = context.config.language_name, context.config.model.thinking
    given = [
        candidate(
            row,
            scoring_conversation("crosslingual", prompt, english[prompt.id], name(prompt.lang)),
            encoder,
            thinking,
        )
        for row, (prompt, _) in zip(answers, wanted, strict=True)
    ]
    candidates = [one for one in given if one.text.strip()]
    scored = score_candidates(
        context,
        target,
        context.model(START),
        context.model(INITIAL),
        candidates,
        f"evaluate {model}: score",
        dropped,
    )
    return answers, scored


def _language_facts(
    lang: str, answers: Sequence[Response], scored: Sequence[Score], start_rewards: dict[str, float]
) -> AnswerFacts:
    """Figures of one language's answers.

    Args:
        start_rewards: rewards of pi^0's answers, by prompt id.
    """
    count = max(len(answers), 1)
    gains = [row.reward - start_rewards[row.id] for row in scored if row.id in start_rewards]
    compared = max(len(gains), 1)
    return {
        **reward_facts(scored),
        "rows": len(answers),
        "in_language": sum(is_in(row.detected_lang, lang) for row in scored) / count if detector(lang) else None,
        "complete": sum(row.finish_reason == "stop" for row in answers) / count,
        "finish_reasons": {
            reason: sum(row.finish_reason == reason for row in answers) for reason in ("stop", "length")
        },
        "empty": sum(not row.response.strip() for row in answers) / count,
        "reward_gain": sum(gains) / compared,
        "reward_wins": sum((gain > 0) + 0.5 * (gain == 0) for gain in gains) / compared,
    }
