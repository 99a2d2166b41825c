"""The first screen of the page: is the reward right, what changed in each language, answers before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from xlr.certificate.facts import Decision
from xlr.certificate.verdict import in_words
from xlr.findings import measures
from xlr.findings.found import Found, Run, label, models
from xlr.findings.measures import Change, Measure, Share
from xlr.findings.overview import reward_sentence
from xlr.findings.stopping import sentences
from xlr.records import START, Question, Response
from xlr.report import plots
from xlr.report.examples import shortened
from xlr.report.plots import Plot
from xlr.run.manifests import rows_of
from xlr.terminal.tokens import token_background

# Kind of instruction -> how the page calls it.
_KINDS = {
    "crosslingual": "asked in English",
    "multilingual": "asked in its own language",
    "translate": "translated into English",
    "model": "rated by the reward model",
}
_COLOURS: dict[Decision, str] = {"go": "better", "go with": "better", "do not": "worse", "not clear": "even"}


@dataclass(frozen=True)
class MeasureRow:
    """One language of a measure."""

    name: str
    shares: Sequence[int | None]
    """Percent for each model."""
    change: str
    clear: bool
    """Whether the interval of the change excludes 0."""


@dataclass(frozen=True)
class ShownMeasure:
    """A measure as a plot, and as a table with a row for each language."""

    measure: Measure
    models: Sequence[str]
    rows: Sequence[MeasureRow]
    plot: Plot


@dataclass(frozen=True)
class BeforeAfter:
    """Answers of the first and the last model to the same instruction. A text comes with its omitted characters."""

    lang: str
    name: str
    instruction: tuple[str, int]
    answers: Sequence[tuple[str, tuple[str, int], bool]]
    """Model, text, and whether it ends by itself."""


@dataclass(frozen=True)
class ShownCertificate:
    """Whether the reward of a language may be trusted."""

    lang: str
    name: str
    decision: str
    colour: str
    reasons: Sequence[str]
    tokens: Sequence[tuple[str, Sequence[tuple[str, str, str]]]]
    """Chosen or rejected with the reward, and for each token its text, log-ratio and background."""


@dataclass(frozen=True)
class Overview:
    """The first screen of one run, below the answer."""

    run: str
    accuracy: Plot | None
    accuracy_sentence: str
    certificates: Sequence[ShownCertificate]
    measures: Sequence[ShownMeasure]
    advice: Sequence[str]
    """Whether another iteration is worth its cost: the answer, then the reasons."""
    examples: Sequence[BeforeAfter]


def overview(run: Run) -> Overview:
    """What the first screen shows of a run; parts without numbers are empty."""
    found = run.found
    accuracy = measures.reward_accuracy(found)
    return Overview(
        run.name,
        _accuracy(found, accuracy) if accuracy else None,
        reward_sentence(found, accuracy) if accuracy else "",
        [_certificate(found, lang) for lang in found["names"] if lang in found["certificates"]],
        [_shown(found, measure) for measure in measures.of_answers(found)],
        sentences(found["advice"]) if found["advice"] else [],
        _before_and_after(run),
    )


def _accuracy(found: Found, accuracy: Mapping[str, Mapping[str, Share]]) -> Plot:
    series: dict[str, dict[str, tuple[float, float, float]]] = {}
    for lang, modes in accuracy.items():
        for mode, share in modes.items():
            low, high = share.interval
            own = (100 * share.value, 100 * low, 100 * high)
            series.setdefault(_KINDS[mode], {})[found["names"][lang]] = own
    return plots.accuracies("Reward accuracy by language", found["name"], series)


def _certificate(found: Found, lang: str) -> ShownCertificate:
    own = found["certificates"][lang]
    verdict = own["verdict"]
    strongest = max((abs(ratio) for one in own["tokens"] for _, ratio in one["pieces"]), default=0.0) or 1.0
    shown = [
        (
            f"{'chosen' if one['chosen'] else 'rejected'}, {sum(ratio for _, ratio in one['pieces']):+.1f} nats",
            [(text, f"{ratio:+.2f} nats", token_background(ratio / strongest)) for text, ratio in one["pieces"]],
        )
        for one in own["tokens"]
    ]
    return ShownCertificate(
        lang,
        found["names"][lang],
        in_words(verdict),
        _COLOURS[verdict["decision"]],
        [remark["text"] for remark in verdict["remarks"]],
        shown,
    )


def _shown(found: Found, measure: Measure) -> ShownMeasure:
    names = list(dict.fromkeys(model for own in measure.by_language.values() for model in own))
    changes = {one.lang: one for one in measures.changes(measure)}
    rows = [
        MeasureRow(
            found["names"][lang],
            [round(100 * own[model].value) if model in own else None for model in names],
            _points(changes[lang]) if lang in changes else "",
            lang in changes and changes[lang].clear,
        )
        for lang, own in measure.by_language.items()
    ]
    series = {
        found["names"][lang]: {model: 100 * share.value for model, share in own.items()}
        for lang, own in measure.by_language.items()
    }
    return ShownMeasure(measure, names, rows, plots.slopes(measure.title, found["name"], series))


def _points(change: Change) -> str:
    """The change in percentage points with its interval."""
    low, high = (100 * end for end in change.interval)
    return f"{100 * (change.after.value - change.before.value):+.0f} ({low:+.0f} … {high:+.0f})"


def _before_and_after(run: Run) -> list[BeforeAfter]:
    """In each language the first held-out instruction that the first and the last model answer differently."""
    evaluated = [key for key, model in models(run.found) if isinstance(key, int) and model["evaluation"]]
    if START not in evaluated or len(evaluated) < 2:
        return []
    last = evaluated[-1]
    folders = [run.directory.iteration(key) / "eval" for key in (START, last)]
    prompts = rows_of(folders[0], Question, "prompts*")
    before, after = ({row.key: row for row in rows_of(folder, Response, "responses/*")} for folder in folders)
    shown: dict[str, BeforeAfter] = {}
    for prompt in prompts:
        key = (prompt.lang, prompt.id, "0")
        if prompt.lang in shown or key not in before or key not in after:
            continue
        if before[key].response.strip() != after[key].response.strip():
            answers = [
                (label(model), shortened(row.response), row.finish_reason == "stop")
                for model, row in ((START, before[key]), (last, after[key]))
            ]
            shown[prompt.lang] = BeforeAfter(
                prompt.lang, run.found["names"][prompt.lang], shortened(prompt.instruction), answers
            )
    return list(shown.values())
