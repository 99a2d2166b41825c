"""Runs against each other: is the other one better, in each language, and how sure is that.

The last judged models are compared answer by answer, which needs the same judge, instructions and baseline's answers.
"""

from collections.abc import Sequence

from xlr import annotations, difficulty
from xlr.annotations import Annotations
from xlr.conclusion import PLAIN_RATES, Conclusion, changed, controls_length, sentence
from xlr.stage import Context
from xlr.tables import Found, label, of_languages

Run = tuple[Context, Found]


def compare(runs: Sequence[Run]) -> list[tuple[str, Conclusion]]:
    """Each run after the first against the first: a heading, and the answer or why there is none."""
    first, *others = runs
    return [(f"{found['name']} against {first[1]['name']}", _compare(first, (other, found))) for other, found in others]


def _compare(first: Run, second: Run) -> Conclusion:
    found, names = [first[1], second[1]], [first[1]["name"], second[1]["name"]]
    for own in found:
        if not _judged(own):
            return _none(names, f"{own['name']} has no judgements yet")
    settings = [_judge(own) for own in found]
    for key in settings[0]:
        if settings[0][key] != settings[1][key]:
            return _none(names, f"{key} is {settings[0][key]} there and {settings[1][key]} here")
    models = [_judged(own)[-1] for own in found]
    files = [
        annotations.read(context.run.iteration(int(model)) / "judgements" / "annotations")
        for (context, _), model in zip((first, second), models, strict=True)
    ]
    baselines = [_baseline_answers(file) for file in files]
    if baselines[0].keys() != baselines[1].keys():
        return _none(names, "their judged instructions differ")
    if baselines[0] != baselines[1]:
        return _none(names, "the baseline's answers differ")
    table = difficulty.load(first[0].config.judge.difficulty)
    (difference,) = annotations.changes(files, [(0, 1)], table)
    figures = [own["iterations"][model]["judgements"] for own, model in zip(found, models, strict=True)]
    controlled = all(controls_length(own, rates) for own, rates in zip(found, figures, strict=True))
    rate, what = (
        ("length_controlled_win_rate", "Length-controlled win rate") if controlled else ("win_rate", "Win rate")
    )
    basis = (
        f"Judge: {figures[0]['judge']}, which compared the answers of both with the same ones of "
        f"{figures[0]['baseline']}{'' if controlled else PLAIN_RATES}"
    )
    before, after = (f"{name}'s {label(model)}" for name, model in zip(names, models, strict=True))
    findings = [changed(lang, own[rate]) for lang, own in of_languages(found[0], difference)]
    return Conclusion(
        sentence(found[0]["names"], after, before, findings),
        basis,
        f"{what}, {before} → {after}, in points",
        findings,
    )


def _none(names: Sequence[str], why: str) -> Conclusion:
    return Conclusion(f"{names[1]} is not compared with {names[0]} answer by answer: {why}.", "", "", [])


def _judged(found: Found) -> list[str]:
    """The iterations that were judged."""
    return [model for model, entry in found["iterations"].items() if model.isdigit() and entry["judgements"]]


def _judge(found: Found) -> dict[str, object]:
    """What decides a verdict, but for the baseline, whose answers are compared themselves."""
    own = found["settings"]
    return {key: own[key] for key in own if key.startswith("judge.") and key != "judge.baseline"}


def _baseline_answers(file: Annotations) -> dict[annotations.Key, str]:
    return dict(zip(file.keys, file.baseline_answers, strict=True))
