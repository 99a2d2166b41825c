"""Does the reward tell right from wrong answers to one question?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean

from xlr.certificate.facts import RightWrong
from xlr.data.expected import ExpectedAnswers, load_expected
from xlr.data.prompts import load_held_out, sources
from xlr.evaluation.finalanswers import is_right
from xlr.languages import ENGLISH
from xlr.maths.batching import spaced
from xlr.maths.shares import share_interval
from xlr.records import Prompt, Response
from xlr.rewarding.candidates import candidate, conversations, score_candidates
from xlr.run.artifact import Artifact, Source
from xlr.run.context import Context
from xlr.sampling.responses import Sampling
from xlr.sampling.samplingplan import Samples
from xlr.settings.scoreconfig import Reward
from xlr.work.dropped import Dropped

_MODES: tuple[Reward, ...] = ("crosslingual", "multilingual")
_SEED_ITERATION = -3  # these answers are neither those of an iteration nor the greedy ones of the stage check


def inputs(context: Context, langs: Sequence[str]) -> dict[str, Source]:
    """The questions and their right answers."""
    section = context.pinned(context.config.evaluate.checked)
    assert section is not None
    found: dict[str, Source] = {f"question {name}": own for name, own in sources(section, _of(context, langs)).items()}
    return found | {f"answers {lang}": ExpectedAnswers(section, lang) for lang in _of(context, langs)}


def measure(
    context: Context, target: Artifact, iteration: int, langs: Sequence[str], count: int, samples: int
) -> dict[str, dict[Reward, RightWrong]]:
    """Sample answers to some of the questions of evaluate.checked, and score those of questions with both kinds.

    Returns:
        Language -> reward mode -> figures; empty if the run has no such questions.
    """
    section = context.pinned(context.config.evaluate.checked)
    if section is None:
        return {}
    langs = _of(context, langs)
    loaded = load_held_out(section, [*langs, ENGLISH], context.config.model.system_prompt)
    generate = context.config.at(iteration).generate.model_copy(update={"max_new_tokens": section.max_new_tokens})
    sampling = Sampling(context, context.model(iteration - 1), generate, _SEED_ITERATION, context.encoder)
    wanted = Samples([prompt for lang in langs for prompt in spaced(loaded[lang], count)], samples)
    label = f"certify iteration {iteration}: questions"
    answers = sampling.compute(target, "answers", sampling.shards(wanted, {}), label).rows()
    expected = {lang: load_expected(section, lang) for lang in langs}
    right = {row.key: is_right(expected[row.lang][row.id], row.response) for row in answers}
    mixed, asked = _mixed(answers, right), [prompt for own in loaded.values() for prompt in own]
    found: dict[str, dict[Reward, RightWrong]] = {}
    for mode in _MODES:
        rewards = _rewards(context, target, mode, iteration, mixed, asked)
        for lang in langs:
            of_lang = {row.key: (row.id, right[row.key]) for row in answers if row.lang == lang}
            found.setdefault(lang, {})[mode] = figures(of_lang, rewards)
    return found


def figures(
    answers: Mapping[tuple[str, ...], tuple[str, bool]], rewards: Mapping[tuple[str, ...], float]
) -> RightWrong:
    """How often right answers have the higher reward.

    Args:
        answers: key of an answer -> its question, and whether it is right.
        rewards: key -> reward in nats; those of questions with right and wrong answers.
    """
    questions: dict[str, tuple[list[float], list[float]]] = {}
    for key, (question, is_true) in answers.items():
        if key in rewards:
            questions.setdefault(question, ([], []))[is_true].append(rewards[key])
    both = [own for own in questions.values() if all(own)]
    shares = [fmean((better > worse) + 0.5 * (better == worse) for worse, better in product(*own)) for own in both]
    accuracy = fmean(shares) if shares else None
    return {
        "answers": len(answers),
        "questions": len(both),
        "right": fmean(is_true for _, is_true in answers.values()),
        "accuracy": accuracy,
        "interval": None if accuracy is None else share_interval(accuracy, len(both)),
    }


def _of(context: Context, langs: Sequence[str]) -> list[str]:
    """The languages in which there are questions."""
    return [lang for lang in langs if lang in context.config.evaluated_languages]


def _mixed(answers: Sequence[Response], right: Mapping[tuple[str, ...], bool]) -> list[Response]:
    """The answers to questions with right and wrong ones."""
    kinds: dict[tuple[str, str], set[bool]] = {}
    for row in answers:
        kinds.setdefault((row.lang, row.id), set()).add(right[row.key])
    return [row for row in answers if len(kinds[row.lang, row.id]) > 1]


def _rewards(
    context: Context,
    target: Artifact,
    mode: Reward,
    iteration: int,
    answers: Sequence[Response],
    questions: Iterable[Prompt],
) -> dict[tuple[str, ...], float]:
    """Key of an answer -> its reward.

    Args:
        questions: those of the answers, and the same in English.
    """
    if not answers:
        return {}
    asked = conversations(questions, mode, context.config.language_name)
    encoder, thinking = context.encoder, context.config.model.thinking
    candidates = [one for row in answers if (one := candidate(row, asked(row), encoder, thinking)).text.strip()]
    policy, reference = context.model(iteration - 1), context.model(context.reward_reference(iteration))
    pieces = replace(target, folder=target.folder.with_name(f"{target.folder.name}.checked-{mode}"))
    label = f"certify iteration {iteration}: questions, {mode}"
    rows = score_candidates(context, pieces, policy, reference, candidates, label, Dropped())
    return {row.key: row.reward for row in rows}
