"""Win rates of annotations: against alpaca_eval's results, paired differences, and the command."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused
from tests.evaluation.annotated import GOLDEN, GOOD, Row, row, swapped, write
from xlr.evaluation import annotations, difficulty, winrates


@pytest.mark.parametrize("form", ["length_controlled_v1", "length_controlled_minimal"])
@pytest.mark.parametrize("name", ["graded", "hard"])
def test_win_rates_equal_those_of_alpaca_eval(name: str, form: str) -> None:
    golden = json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))["figures"][name][form]
    table = difficulty.load(str(GOLDEN / "df_gamed.csv") if form == "length_controlled_v1" else None)
    found = winrates.measure(annotations.read(GOLDEN / f"{name}.json"), None, table)
    assert found["length_control"] == form
    assert found["win_rate"] == pytest.approx(golden["win_rate"], abs=1e-6)
    assert found["standard_error"] == pytest.approx(golden["standard_error"], abs=1e-6)
    assert found["length_controlled_win_rate"] == pytest.approx(golden["length_controlled_winrate"], abs=0.05)
    counted = [found[key] for key in ("wins", "ties", "losses", "total")]
    assert counted == [golden[key] for key in ("n_wins", "n_draws", "n_wins_base", "n_total")]


def measured(path: Path, rows: list[Row]) -> dict[str, Any]:
    return winrates.measure(annotations.read(write(path, rows)), None, None)


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = json.loads((GOLDEN / "graded.json").read_text(encoding="utf-8"))
    one = measured(tmp_path / "one.json", rows)
    random.Random(4).shuffle(rows)
    other = measured(tmp_path / "other.json", rows)
    for key in ("win_rate", "standard_error", "wins", "ties", "losses", "failed"):
        assert other[key] == pytest.approx(one[key])
    # The folds of the cross-validation depend on the order of the rows, as in alpaca_eval.
    assert other["length_controlled_win_rate"] == pytest.approx(one["length_controlled_win_rate"], abs=0.5)


def test_judging_in_both_orders_removes_a_position_bias_exactly(tmp_path: Path) -> None:
    bias = 0.25
    fair = [1 + random.Random(number).uniform(bias, 1 - bias) for number in range(20)]
    unbiased = measured(tmp_path / "fair.json", [row(i, value) for i, value in enumerate(fair)])
    straight = [row(i, value + bias) for i, value in enumerate(fair)]
    both = [*straight, *(swapped(one, 3 - value + bias) for one, value in zip(straight, fair, strict=True))]
    found = measured(tmp_path / "both.json", both)
    assert found["win_rate"] == pytest.approx(unbiased["win_rate"])
    assert found["length_controlled_win_rate"] == pytest.approx(unbiased["length_controlled_win_rate"])
    assert found["total"] == 20
    assert found["position_bias"]["instructions"] == 20
    assert found["position_bias"]["second_place_win_rate"] == pytest.approx(50 + 100 * bias)
    assert unbiased["position_bias"] is None


def test_failed_and_tied_judgements_are_counted(tmp_path: Path) -> None:
    found = measured(tmp_path / "rows.json", [row(i, value) for i, value in enumerate([2, 1.5, 0, None, 1, 1.2, 2])])
    assert [found[key] for key in ("wins", "ties", "losses", "failed", "total")] == [2, 2, 2, 1, 6]
    assert found["win_rate"] == pytest.approx(100 * (1 + 0.5 + 0.5 + 0 + 0.2 + 1) / 6)
    assert found["tie_rate"] == pytest.approx(100 / 3)


def test_the_difference_of_two_files_is_paired_in_each_language(cli: Cli, tmp_path: Path) -> None:
    rng = random.Random(1)
    base = {(lang, i): rng.uniform(0.1, 0.7) for lang, i in itertools.product(("es", "de"), range(40))}
    first = [row(i, 1 + value, lang) for (lang, i), value in base.items()]
    second = [row(i, 1 + value + (0.2 if lang == "es" else 0.1), lang) for (lang, i), value in base.items()]
    random.Random(2).shuffle(second)
    files = [write(tmp_path / name, rows) for name, rows in (("a.json", first), ("b.json", second))]
    found = json.loads(cli("winrate", *files, "--json").stdout)
    change = found["difference"]
    for lang, points in (("es", 20), ("de", 10)):
        # A constant difference has no variance in pairs, whatever the variance of each file.
        assert [change["languages"][lang]["win_rate"][key] for key in ("value", "low", "high")] == pytest.approx(
            [points] * 3
        )
    assert change["average"]["win_rate"]["value"] == pytest.approx(15)
    controlled = change["average"]["length_controlled_win_rate"]
    assert controlled["low"] < controlled["value"] < controlled["high"]
    low, high = found["first"]["languages"]["es"]["win_rate_interval"]
    assert low < found["first"]["languages"]["es"]["win_rate"] < high
    assert json.loads(cli("winrate", *files, "--json").stdout) == found, "the resamples differ between processes"


def test_the_command_prints_tables(cli: Cli, tmp_path: Path) -> None:
    first = [row(i, 1 + i % 2, lang) for lang in ("es", "de") for i in range(6)]
    second = [one | {"preference": 2} for one in first]
    both = [*first, *(swapped(one, 3 - one["preference"]) for one in first)]
    files = [write(tmp_path / name, rows) for name, rows in (("a.json", both), ("b.json", second))]
    result = cli("winrate", *files, COLUMNS="160")
    assert result.returncode == 0, result.stderr
    for text in ("length_controlled_minimal", "average", "50.0 ± ", "+50.0", "both orders agree on 100.0 %"):
        assert text in result.stdout


def test_the_command_refuses_bad_input(cli_here: Cli, tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", GOOD)
    assert_refused(
        cli_here("winrate", write(tmp_path / "bad.json", [*GOOD, row(3, 5)])), "bad.json: element 3: preference 5"
    )
    assert_refused(cli_here("winrate", tmp_path / "absent.json"), "absent.json: cannot be read")
    short = write(tmp_path / "short.json", GOOD[:2])
    assert_refused(cli_here("winrate", good, short), "short.json: lacks the instruction 'Say 2.'")
    assert_refused(cli_here("winrate", good, "--difficulty", tmp_path / "none.csv"), "none.csv: cannot be read")
    many = write(tmp_path / "many.json", [row(i, 1.5) for i in range(70)])
    assert_refused(cli_here("winrate", many, "--difficulty", GOLDEN / "df_gamed.csv"), "more instructions than the 60")


def test_two_judges_of_the_same_answers_are_compared(tmp_path: Path) -> None:
    """A tie counts for neither."""
    rows = [row(number, 1 + (number % 2)) for number in range(8)]
    other = [row(number, 1 + (number % 2 if number < 6 else 1 - number % 2)) for number in range(8)]
    other[0] = row(0, 1.5)
    files = [annotations.read(write(tmp_path / f"{name}.json", own)) for name, own in (("a", rows), ("b", other))]
    found = winrates.measure(*files, None)["agreement"]
    assert found is not None
    assert found["judgements"] == 7
    assert found["agreement"] == pytest.approx(100 * 5 / 7)
    assert found["interval"][0] < 100 * 5 / 7 < found["interval"][1]


def test_judges_of_other_models_are_not_compared(tmp_path: Path) -> None:
    rows = [row(number, 1 + (number % 2)) for number in range(8)]
    other = [one | {"generator_2": "another"} for one in rows]
    files = [annotations.read(write(tmp_path / f"{name}.json", own)) for name, own in (("a", rows), ("b", other))]
    assert winrates.measure(*files, None)["agreement"] is None
