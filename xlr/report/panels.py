"""The plots of the report: which are drawn, and from which data. `plots` draws them."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xlr.evaluation.facts import Rates
from xlr.findings.found import Found, Run, by_judge, by_language, label
from xlr.findings.summary import reward_formula, reward_unit
from xlr.judging.ratenotes import comparable
from xlr.maths import lengthcontrol
from xlr.records import Score
from xlr.report import plots
from xlr.report.plots import Plot
from xlr.rewarding.pairs import alpha_unit, candidates_by_prompt, rewarded, rule_of
from xlr.run.manifests import manifest_path, rows_of
from xlr.settings.pairconfig import PairConfig
from xlr.tracking.metricslog import whole_rows

# Metric of metrics.jsonl -> title and unit of its plot.
_METRICS = {
    "loss": ("Loss", "nats"),
    "rewards/margins": ("Reward margin", "nats"),
    "rewards/accuracies": ("Accuracy", "share of pairs"),
    "logps/chosen": ("Log-probability of chosen", "nats"),
    "logps/rejected": ("Log-probability of rejected", "nats"),
    "kl": ("KL", "nats"),
}


@dataclass(frozen=True)
class Panel:
    """Plots of the same kind, for example one for each language, under a heading with a note."""

    heading: str
    note: str
    plots: Sequence[Plot]


def win_rates(runs: Sequence[Run]) -> list[Panel]:
    """Win rates of the judged models, for each run."""
    return [_win_rates(run, _suffix(run, runs)) for run in runs]


def data(runs: Sequence[Run]) -> list[Panel]:
    """Rewards and length control of the sampled responses, for each run."""
    return [panel for run in runs for panel in _data(run, _suffix(run, runs))]


def training(runs: Sequence[Run]) -> list[Panel]:
    """Metrics over the steps of training, for each run."""
    return [_training(run, _suffix(run, runs)) for run in runs]


def _suffix(run: Run, runs: Sequence[Run]) -> str:
    """What a heading adds to name the run; nothing on a page with one run."""
    return f" · {run.name}" if len(runs) > 1 else ""


def _win_rates(run: Run, suffix: str) -> Panel:
    plotted: defaultdict[tuple[str, str], dict[str, Rates]] = defaultdict(dict)
    for key, judge, figures in by_judge(run.found):
        for lang, own in by_language(run.found, figures):
            plotted[lang, judge][label(key)] = own
    kinds = {figures["length_control"] for _, _, figures in by_judge(run.found)}
    return Panel(
        f"Win rates{suffix}",
        "Win rates against the baseline, with 95 % intervals. The dotted line is 50 %: as good as the baseline."
        + "".join(f" Length control: {comparable(own)}." for own in sorted(kinds)),
        [
            plots.win_rates(
                run.found["names"].get(lang, lang) + (f" · {judge}" if judge else ""),
                run.name,
                list(by_model),
                _kinds_of_rates(list(by_model.values())),
            )
            for (lang, judge), by_model in plotted.items()
        ],
    )


def _kinds_of_rates(rates: Sequence[Rates]) -> dict[str, list[tuple[float, ...]]]:
    """Kind of rate -> value, low and high of each model; without length control if there are too few judgements."""
    found = {"win rate": [(own["win_rate"], *own["win_rate_interval"]) for own in rates]}
    if all(own["length_controlled_standard_error"] for own in rates):
        found["length-controlled"] = [
            (own["length_controlled_win_rate"], *own["length_controlled_interval"]) for own in rates
        ]
    return found


def _data(run: Run, suffix: str) -> Iterator[Panel]:
    names = run.found["names"]
    rewards: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)
    gaps: defaultdict[str, dict[str, tuple[list[float], float]]] = defaultdict(dict)
    for iteration in range(1, run.config.iterations + 1):
        pairs = run.found["iterations"][str(iteration)]["stages"].get("pair")
        for lang, rows in _scores(run, iteration):
            title = f"iteration {iteration}"
            if finite := [row.reward for row in rows if math.isfinite(row.reward)]:
                rewards[lang][title] = finite
            unit = alpha_unit(run.config.score.weights, rows)
            if pairs and (curve := _length_gaps(run.config.at(iteration).pair, rows, unit)):
                gaps[lang][title] = (curve, pairs["facts"][lang]["alpha"] / unit)
    yield Panel(
        f"Rewards of the sampled responses{suffix}",
        reward_formula(run.found),
        [plots.rewards(names[lang], run.name, own, reward_unit(run.found)) for lang, own in rewards.items()],
    )
    yield Panel(
        f"Length control{suffix}",
        "Difference between the mean lengths of chosen and rejected responses, for each length penalty alpha. "
        f"The dot marks the alpha that was used. {_of_alpha(run.found)}",
        [plots.length_gap(names[lang], run.name, lengthcontrol.ALPHA_GRID, own) for lang, own in gaps.items()],
    )


def _of_alpha(found: Found) -> str:
    """The unit of alpha, in words."""
    nats = reward_unit(found) == "nats"
    return f"Alpha is in {'nats' if nats else 'hundredths of the standard deviation of the rewards'} a character."


def _scores(run: Run, iteration: int) -> Iterator[tuple[str, list[Score]]]:
    """The finished scores of an iteration, one language at a time because all of them may take gigabytes."""
    folder = run.directory.iteration(iteration) / "scores"
    if manifest_path(folder).is_file():
        for lang in run.config.trained_languages:
            if rows := rows_of(folder, Score, part=lang):
                yield lang, rows


def _length_gaps(section: PairConfig, rows: Sequence[Score], unit: float) -> list[float]:
    """|mean length of chosen - mean length of rejected| of one language for every alpha of the grid, in characters."""
    candidates, _ = candidates_by_prompt(rewarded(section, rows), section.filters)
    if not candidates:
        return []
    return lengthcontrol.length_gaps(
        [[row.reward for row in group] for group in candidates.values()],
        [[row.num_chars for row in group] for group in candidates.values()],
        rule_of(section),
        unit,
    )


def _training(run: Run, suffix: str) -> Panel:
    series: defaultdict[str, dict[str, tuple[list[int], list[float]]]] = defaultdict(dict)
    for iteration in range(run.config.iterations + 1):
        rows = whole_rows(run.directory.iteration(iteration) / "metrics.jsonl")
        for metric in _METRICS:
            if points := [(row["step"], row[metric]) for row in rows if metric in row]:
                series[metric][label(iteration)] = ([step for step, _ in points], [value for _, value in points])
    return Panel(
        f"Training curves{suffix}",
        "Mean over the pairs of each optimizer step, over all languages.",
        [plots.over_steps(*_METRICS[metric], run.name, own) for metric, own in series.items()],
    )
