"""Win rates against plain loops, against the package alpaca_eval's figures, and what must hold for any judge."""

import http.server
import itertools
import json
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import Cli, assert_refused
from xlr.errors import UserError
from xlr.evaluation import annotations, difficulty
from xlr.maths import winrate
from xlr.maths.winrate import Comparisons

# figures.json: get_length_controlled_winrate of the package on graded.json and hard.json, reading df_gamed.csv here
# instead of its own.
GOLDEN = Path(__file__).parents[1] / "golden" / "winrate"
Row = dict[str, Any]


def comparisons(preferences: list[float], gaps: list[float]) -> Comparisons:
    size = len(preferences)
    values = (torch.tensor(numbers, dtype=torch.float64) for numbers in (preferences, gaps))
    return Comparisons(("",) * size, *values, torch.arange(size))


def rates(judged: Comparisons) -> tuple[float, float]:
    """Win rate and length-controlled win rate."""
    once = torch.ones(1, len(judged.langs), dtype=torch.float64)
    found = winrate.rates(judged, None, once)
    return found["win_rate"].item(), found["length_controlled_win_rate"].item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_fit(rows: list[tuple[float, float]], penalty: float) -> tuple[float, float]:
    """(length, skill) by descent on one coordinate at a time, each to its minimum by bisection of the slope."""
    found = [0.0, 0.0]

    def slope(which: int, value: float) -> float:
        own = [*found]
        own[which] = value
        total = 0.0
        for length, preference in rows:
            total += (sigmoid(own[0] * length + own[1]) - preference) * (length if which == 0 else 1.0)
        return penalty * total

    for _ in range(40):
        for which in (0, 1):
            at_zero = slope(which, 0.0)
            if abs(at_zero) <= 1:
                found[which] = 0.0
                continue
            sign = -1.0 if at_zero > 0 else 1.0
            low, high = sorted((0.0, sign * 30))
            for _ in range(40):
                middle = (low + high) / 2
                if slope(which, middle) + sign > 0:
                    high = middle
                else:
                    low = middle
            found[which] = (low + high) / 2
    return found[0], found[1]


def naive_length_controlled(preferences: list[float], gaps: list[float]) -> float:
    mean = sum(gaps) / len(gaps)
    spread = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))
    rows = [(math.tanh(gap / spread), value) for gap, value in zip(gaps, preferences, strict=True)]
    members: list[list[int]] = [[] for _ in range(5)]
    for i in reversed(range(len(rows))):  # the last row to the lightest fold
        min(members, key=len).append(i)
    best = (math.inf, 0.0)
    for power in range(10):
        penalty, loss = 10 ** (-4 + 8 * power / 9), 0.0
        for fold in members:
            length, skill = naive_fit([row for i, row in enumerate(rows) if i not in fold], penalty)
            for i in fold:
                chance = sigmoid(length * rows[i][0] + skill)
                loss -= (rows[i][1] * math.log(chance) + (1 - rows[i][1]) * math.log(1 - chance)) / len(fold)
        best = min(best, (loss, penalty))
    return 100 * sigmoid(naive_fit(rows, best[1])[1])


@pytest.mark.parametrize("seed", [2, 3])
def test_rates_equal_plain_loops(seed: int) -> None:
    rng = random.Random(seed)
    gaps = [float(rng.randint(-90, 60)) for _ in range(14)]
    preferences = [sigmoid(1.0 - gap / 40 + rng.gauss(0, 0.5)) for gap in gaps]
    plain, controlled = rates(comparisons(preferences, gaps))
    assert plain == pytest.approx(100 * sum(preferences) / len(preferences))
    assert controlled == pytest.approx(naive_length_controlled(preferences, gaps), abs=1e-4)
    assert abs(controlled - 50) > 1  # a fit that the penalty holds at nought would show little


@pytest.mark.parametrize("form", ["length_controlled_v1", "length_controlled_minimal"])
@pytest.mark.parametrize("name", ["graded", "hard"])
def test_figures_are_those_of_alpaca_eval(name: str, form: str) -> None:
    golden = json.loads((GOLDEN / "figures.json").read_text(encoding="utf-8"))["figures"][name][form]
    table = difficulty.load(str(GOLDEN / "df_gamed.csv") if form == "length_controlled_v1" else None)
    found = annotations.measure(annotations.read(GOLDEN / f"{name}.json"), None, table)
    assert found["length_control"] == form
    assert found["win_rate"] == pytest.approx(golden["win_rate"], abs=1e-6)
    assert found["standard_error"] == pytest.approx(golden["standard_error"], abs=1e-6)
    assert found["length_controlled_win_rate"] == pytest.approx(golden["length_controlled_winrate"], abs=0.05)
    counted = [found[key] for key in ("wins", "ties", "losses", "total")]
    assert counted == [golden[key] for key in ("n_wins", "n_draws", "n_wins_base", "n_total")]


JUDGED = st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(-50, 50)), min_size=5, max_size=40)


@settings(max_examples=15, deadline=None)
@given(JUDGED)
def test_swapping_the_models_mirrors_both_rates(judged: list[tuple[float, int]]) -> None:
    there = rates(comparisons([value for value, _ in judged], [gap for _, gap in judged]))
    back = rates(comparisons([1 - value for value, _ in judged], [-gap for _, gap in judged]))
    assert [100 - rate for rate in back] == pytest.approx(there, abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(20, 60))
def test_a_judge_that_likes_length_loses_by_length_control(seed: int, longer: int) -> None:
    rng = random.Random(seed)
    gaps = [-longer + rng.gauss(0, 30) for _ in range(300)]
    plain, controlled = rates(comparisons([sigmoid(-gap / 20) for gap in gaps], gaps))
    assert plain > 60
    assert controlled < plain - 5


@settings(max_examples=15, deadline=None)
@given(st.floats(0.1, 0.9), st.integers(0, 10**6))
def test_equal_lengths_leave_the_win_rate(skill: float, seed: int) -> None:
    rng = random.Random(seed)
    preferences = [min(max(skill + rng.gauss(0, 0.05), 0), 1) for _ in range(300)]
    plain, controlled = rates(comparisons(preferences, [7.0] * 300))
    assert controlled == pytest.approx(plain, abs=2.5)  # what the penalty draws towards 50


def write(path: Path, rows: object) -> Path:
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def row(number: int, preference: float | None, lang: str = "", **values: Any) -> Row:
    plain = {
        "instruction": f"Say {number}.",
        "output_1": "a" * (10 + number * 7 % 11),
        "output_2": "b" * (12 + number * 5 % 13),
        "preference": preference,
        "generator_1": "base",
        "generator_2": "model",
        "lang": lang,
    }
    return plain | values


def swapped(one: Row, preference: float | None) -> Row:
    """The same two answers in the other order."""
    return one | {
        "output_1": one["output_2"],
        "output_2": one["output_1"],
        "generator_1": one["generator_2"],
        "generator_2": one["generator_1"],
        "preference": preference,
    }


def measured(path: Path, rows: list[Row]) -> dict[str, Any]:
    return annotations.measure(annotations.read(write(path, rows)), None, None)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    rows = json.loads((GOLDEN / "graded.json").read_text(encoding="utf-8"))
    one = measured(tmp_path / "one.json", rows)
    random.Random(4).shuffle(rows)
    other = measured(tmp_path / "other.json", rows)
    for key in ("win_rate", "standard_error", "wins", "ties", "losses", "failed"):
        assert other[key] == pytest.approx(one[key])
    # The folds that choose the penalty follow the rows, as the package's do.
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


def test_two_files_are_compared_in_pairs_by_language(cli: Cli, tmp_path: Path) -> None:
    rng = random.Random(1)
    base = {(lang, i): rng.uniform(0.1, 0.7) for lang, i in itertools.product(("es", "de"), range(40))}
    first = [row(i, 1 + value, lang) for (lang, i), value in base.items()]
    second = [row(i, 1 + value + (0.2 if lang == "es" else 0.1), lang) for (lang, i), value in base.items()]
    random.Random(2).shuffle(second)
    files = [write(tmp_path / name, rows) for name, rows in (("a.json", first), ("b.json", second))]
    found = json.loads(cli("winrate", *files, "--json").stdout)
    change = found["difference"]
    for lang, points in (("es", 20), ("de", 10)):
        # A constant difference has no spread in pairs, however far the files themselves spread.
        assert [change["languages"][lang]["win_rate"][key] for key in ("value", "low", "high")] == pytest.approx(
            [points] * 3
        )
    assert change["average"]["win_rate"]["value"] == pytest.approx(15)
    controlled = change["average"]["length_controlled_win_rate"]
    assert controlled["low"] < controlled["value"] < controlled["high"]
    low, high = found["first"]["languages"]["es"]["win_rate_interval"]
    assert low < found["first"]["languages"]["es"]["win_rate"] < high
    assert json.loads(cli("winrate", *files, "--json").stdout) == found, "another process resamples otherwise"


GOOD = [row(0, 2), row(1, 1.3), row(2, 1)]
CASES: dict[str, tuple[object, str]] = {
    "not a list": ({"a": 1}, "holds a dict, not a list"),
    "not an object": ([*GOOD, 3], "element 3 is a int, not an object"),
    "missing key": ([*GOOD, {"instruction": "Say."}], "element 3: has no 'output_1'"),
    "out of range": ([*GOOD, row(3, 2.5)], "element 3: preference 2.5 is none of AlpacaEval's"),
    "no number": ([*GOOD, row(3, 1) | {"preference": "2"}], "element 3: preference '2' is none of"),
    "several generators": ([*GOOD, row(3, 1, generator_2="other")], "element 3: compares 'base' with 'other'"),
    "empty output that wins": ([*GOOD, row(3, 2, output_2=" ")], "element 3: output_2 is empty"),
    "empty output that ties": ([*GOOD, row(3, 1.5, output_1="")], "element 3: output_1 is empty"),
    "empty instruction": ([*GOOD, row(3, None, instruction=" ")], "element 3: instruction is empty"),
    "orders that differ": ([*GOOD, row(3, 1.5, preferences=[1.2, 1.4])], "element 3: preference is not the mean of"),
    "a bad order": ([*GOOD, row(3, 1.5, preferences=[1, 3])], "element 3: preference 3 is none of"),
    "no text": ([*GOOD, row(3, 1, output_1=None)], "element 3: output_1 is empty or no text"),
    "one row": (GOOD[:1], "holds 1 judged instructions; a win rate needs two"),
    "all failed": ([row(0, None), row(1, None)], "holds 0 judged instructions"),
    "nothing": ([], "holds 0 judged instructions"),
    "other answers": ([*GOOD, swapped(row(0, 2, output_2="else"), 1)], "element 3: its answers differ"),
}


def test_empty_answers_lose(tmp_path: Path) -> None:
    rows = [*GOOD, row(3, 1, output_2=""), row(4, 2, output_1=" "), row(5, 1.5, output_1="", output_2=" ")]
    found = annotations.read(write(tmp_path / "empty.json", rows)).comparisons
    assert found.preferences_N.tolist()[3:] == [0, 1, 0.5]


def test_a_row_with_both_orders_equals_two_rows(tmp_path: Path) -> None:
    sides = [(1.2, 1.9), (2.0, 1.0), (1.4, 1.4), (None, 1.3)]
    halves = [(row(i, there), swapped(row(i, back), back and 3 - back)) for i, (there, back) in enumerate(sides)]
    means = [None if None in pair else sum(pair) / 2 for pair in sides]
    whole = [row(i, mean, preferences=list(pair)) for i, (mean, pair) in enumerate(zip(means, sides, strict=True))]
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.json", whole[:2])
    write(folder / "b.json", whole[2:])
    one = annotations.read(write(tmp_path / "two.json", [half for pair in halves for half in pair]))
    other = annotations.read(folder)
    assert one.position_bias == other.position_bias
    assert one.comparisons.preferences_N.tolist() == pytest.approx(
        other.comparisons.preferences_N.tolist(), nan_ok=True
    )


@pytest.mark.parametrize("case", CASES)
def test_bad_annotations_are_refused(case: str, tmp_path: Path) -> None:
    rows, message = CASES[case]
    with pytest.raises(UserError) as caught:
        annotations.read(write(tmp_path / "bad.json", rows))
    assert str(tmp_path / "bad.json") in str(caught.value)
    assert message in str(caught.value)


def spoil_header(text: str) -> str:
    return text.replace("std_delta_len", "length", 1)


def spoil_number(text: str) -> str:
    return text.replace("\nverbose,1,", "\nverbose,one,", 1)


def spoil_finite(text: str) -> str:
    return text.replace("\nverbose,1,", "\nverbose,1,nan,", 1)


def spoil_index(text: str) -> str:
    return text.replace(",0,", ",700,")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_header, "has no column 'std_delta_len'"),
        (spoil_number, "df.csv:3: not a row of AlpacaEval's df_gamed.csv"),
        (spoil_finite, "df.csv:3: not a row of AlpacaEval's df_gamed.csv .*nan"),
        (spoil_index, "does not count the instructions from 0"),
    ],
)
def test_a_bad_difficulty_table_is_refused(spoil: Callable[[str], str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "df.csv"
    file.write_text(spoil((GOLDEN / "df_gamed.csv").read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=message):
        difficulty.load(str(file))


class Hub(http.server.BaseHTTPRequestHandler):
    """What the hub answers to who wants the table."""

    def do_HEAD(self) -> None:
        self.respond()

    def do_GET(self) -> None:
        self.wfile.write(self.respond())

    def respond(self) -> bytes:
        known = self.path == "/datasets/tatsu-lab/alpaca_eval/resolve/main/df_gamed.csv"
        table = (GOLDEN / "df_gamed.csv").read_bytes() if known else b""
        self.send_response(200 if known else 404)
        for name, value in (("X-Repo-Commit", "0" * 40), ("ETag", '"table"'), ("Content-Length", str(len(table)))):
            self.send_header(name, value)
        self.end_headers()
        return table

    def log_message(self, *_: Any) -> None:
        pass


def test_the_table_comes_from_the_hub_once(cli: Cli, tmp_path: Path) -> None:
    file, table = GOLDEN / "graded.json", "tatsu-lab/alpaca_eval"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hub")}
        place |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
        fetched = cli("winrate", file, "--difficulty", table, "--json", **place)
        other = cli("winrate", file, "--difficulty", "some/other", **place)
        assert_refused(other, "some/other: no file, and no dataset")
        server.shutdown()
    assert fetched.returncode == 0, fetched.stderr
    expected = cli("winrate", file, "--difficulty", GOLDEN / "df_gamed.csv", "--json").stdout
    assert fetched.stdout == expected
    assert cli("winrate", file, "--difficulty", table, "--json", **place).stdout == expected
    elsewhere = place | {"HF_HOME": str(tmp_path / "another"), "HF_HUB_OFFLINE": "1"}  # else it tries for 24 s
    refused = cli("winrate", file, "--difficulty", table, **elsewhere)
    assert_refused(refused, "tatsu-lab/alpaca_eval: no file, and no dataset on the hub whose df_gamed.csv can be had")


def test_the_command_shows_tables(cli: Cli, tmp_path: Path) -> None:
    first = [row(i, 1 + i % 2, lang) for lang in ("es", "de") for i in range(6)]
    second = [one | {"preference": 2} for one in first]
    both = [*first, *(swapped(one, 3 - one["preference"]) for one in first)]
    files = [write(tmp_path / name, rows) for name, rows in (("a.json", both), ("b.json", second))]
    result = cli("winrate", *files, COLUMNS="160")
    assert result.returncode == 0, result.stderr
    for text in ("length_controlled_minimal", "average", "50.0 ± ", "+50.0", "both orders agree on 100.0 %"):
        assert text in result.stdout


def test_the_command_refuses_bad_input(cli: Cli, tmp_path: Path) -> None:
    good = write(tmp_path / "good.json", GOOD)
    assert_refused(
        cli("winrate", write(tmp_path / "bad.json", [*GOOD, row(3, 5)])), "bad.json: element 3: preference 5"
    )
    assert_refused(cli("winrate", tmp_path / "absent.json"), "absent.json: not readable as JSON")
    short = write(tmp_path / "short.json", GOOD[:2])
    assert_refused(cli("winrate", good, short), "short.json: lacks the instruction 'Say 2.'")
    assert_refused(cli("winrate", good, "--difficulty", tmp_path / "none.csv"), "none.csv: cannot be read")
    many = write(tmp_path / "many.json", [row(i, 1.5) for i in range(70)])
    assert_refused(cli("winrate", many, "--difficulty", GOLDEN / "df_gamed.csv"), "more instructions than the 60")
