"""The report of a real run: its answers, hostile texts, and the page in a browser."""

import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Cli, assert_refused, violations
from tests.report.conftest import HOSTILE, INSTRUCTIONS, JUDGED, collected, load
from tests.rows import read_rows, reseal
from xlr.evaluation import annotations, winrates
from xlr.findings.collect import collect
from xlr.findings.comparison import compare
from xlr.findings.conclusion import Conclusion, Finding, conclude, together
from xlr.findings.found import Run
from xlr.records import Pair
from xlr.report import examples, report, tables
from xlr.run.directory import RunDir
from xlr.run.files import read_json, write_json
from xlr.run.manifests import manifest_path
from xlr.run.rows import write_rows


def make(run: Path) -> str:
    report.make([load(run)], run)
    return (run / "report.html").read_bytes().decode()  # an answer may hold a carriage return


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    """The finished run's page."""
    return make(run)


def copied(run: Path, folder: Path, *left_out: str) -> Path:
    return Path(shutil.copytree(run, folder, ignore=shutil.ignore_patterns(*left_out, "report.*")))


class Reader(HTMLParser):
    """The cells of a page's tables, and what its elements would fetch."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.fetched: list[str] = []
        self.scripts = 0
        self._in_cell = False
        self.feed(page)
        self.rows = [[cell.strip() for cell in row] for row in self.rows]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True
        links = [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data", "action")
        ]
        self.fetched += [link for link in links if not link.startswith("#")]

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def test_the_page_has_an_answer_with_an_interval_for_every_language(run: Path, page: str) -> None:
    assert "π<sup>1</sup> against π<sup>0</sup>: better in English, Arabic, Chinese." in page
    first, second = (annotations.read(run / f"iter{t}" / JUDGED / "annotations") for t in (0, 1))
    found = winrates.measure(first, second, None)
    rows = Reader(page).rows
    for lang in INSTRUCTIONS:
        own, change = found["second"]["languages"][lang], found["difference"]["languages"][lang]
        judged = next(row for row in rows if row[:2] == [lang, "π1"] and len(row) == 10)
        assert judged[2] == f"{own['win_rate']:.1f}"
        assert judged[3] == "{:.1f} … {:.1f}".format(*own["win_rate_interval"])
        assert judged[5] == "{:.1f} … {:.1f}".format(*own["length_controlled_interval"])
        assert judged[-1] == ("1" if lang == "zh" else "0")
        changed = next(row for row in rows if row[:2] == [lang, "π0 → π1"])
        assert changed[2:4] == [
            f"{change['win_rate']['value']:+.1f}",
            f"{change['win_rate']['low']:+.1f} … {change['win_rate']['high']:+.1f}",
        ]
    evaluation = read_json(run / "iter1" / "eval" / "eval.json")
    for lang, mode in (("en", "multilingual"), ("es", "crosslingual"), ("es", "multilingual")):
        accuracy = f"{100 * evaluation['preferences'][lang][mode]['accuracy']:.1f}"
        assert [lang, mode, "π1", "4", accuracy] in [row[:5] for row in rows]
    pairs = read_json(manifest_path(run / "iter1" / "pairs"))["facts"]
    assert ["1", "ar", str(pairs["ar"]["pairs"]), f"{pairs['ar']['alpha']:.3f}"] in [row[:4] for row in rows]
    assert ["π1", "11", "52.5", "90.9"] in rows
    assert "Judge: a &lt;judge&gt;, which compared the answers with those of reference; its verdicts in both" in page
    for words in (
        "log πᵗ⁻¹(y | G(x))",
        "length_controlled_minimal",
        "0.50",
        "1,200 asked, 24 answered",
        "Reward margin",
    ):
        assert words in page


def test_hours_count_the_processors_that_a_stage_used(run: Path) -> None:
    """Two actors with one CPU each sample and score; one process makes pairs; one rank with one thread trains."""
    found = collected(run)
    stages = found["iterations"]["1"]["stages"]
    cpus = {name: stages[name]["processors"]["cpus"] for name in ("generate", "score", "pair", "train")}
    assert cpus == {"generate": 2, "score": 2, "pair": 1, "train": 1}
    stages["generate"] |= {"seconds": 1800.0, "processors": {"cpus": 64.0, "gpus": 16.0}}
    (costs,) = tables.costs([found])
    headings = [column.heading for column in costs.columns]
    rows = {row[:2]: dict(zip(headings, row, strict=True)) for row in costs.rows}
    sampling = rows["1", "generate"]
    assert (sampling["processors"], sampling["GPU-hours"], sampling["CPU-hours"]) == (
        "64 CPUs, 16 GPUs",
        "8.00",
        "32.00",
    )
    assert rows["1", "pair"]["CPU-hours"] == "< 0.01"
    assert rows["all", ""]["GPU-hours"] == "8.00"


def test_dropped_rows_are_counted_by_language_and_reason(run: Path) -> None:
    found = collected(run)
    stages = found["iterations"]["1"]["stages"]
    stages["score"]["facts"]["dropped"] = {"ar": {"empty": 3}, "en": {"longer than score.max_length=9": 1}}
    stages["pair"]["facts"]["zh"] |= {"filtered": {"repeated": 2}, "dropped": {"one candidate": 4}}
    stages["train"]["facts"]["warnings"] = ["step 3: chosen responses become less likely"]
    stages["train"]["facts"]["dropped"] = {"ar": {"longer than max_length=9": 2}, "zh": {"longer than max_length=9": 1}}
    responses, pairs, training = tables.data([found])
    assert [row[-1] for row in responses.rows] == ["1 longer than score.max_length=9", "3 empty", ""]
    assert pairs.rows[2][-2:] == ("2 repeated", "4 one candidate")
    dropped = "2 ar longer than max_length=9, 1 zh longer than max_length=9"
    assert training.rows == [("π1", "12", "3", "0", "step 3: chosen responses become less likely", dropped)]


def test_hostile_texts_are_escaped_and_nothing_is_fetched(page: str) -> None:
    reader = Reader(page)
    assert reader.fetched == []
    assert reader.scripts == 2  # the rows as JSON, and the page's own
    assert "window.hacked" in page
    assert "<script>window.hacked" not in page
    assert "<img" not in page
    assert not re.search(r"@import|url\((?!#)", page)
    (rows,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page, re.DOTALL)
    shown = json.loads(rows)
    assert sum(HOSTILE in answer["text"] for row in shown for answer in row["answers"]) == 1 + 2 * len(INSTRUCTIONS)


def test_the_same_run_gives_the_same_bytes_from_anywhere_in_any_locale(
    run: Path, page: str, cli_here: Cli, tmp_path: Path
) -> None:
    own = copied(run, tmp_path / "elsewhere" / "run")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "MPLBACKEND": "tkagg"}
    result = cli_here("report", "run", "--tables", cwd=own.parent, COLUMNS="120", **plain)
    assert result.returncode == 0, result.stderr
    assert "Judged answers" in result.stdout
    assert (own / "report.html").read_bytes() == page.encode()
    assert (own / "report.md").read_bytes() == (run / "report.md").read_bytes()
    assert "| ar | π1 |" in (run / "report.md").read_text(encoding="utf-8")


def test_two_runs_are_shown_side_by_side(run: Path, cli_here: Cli, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "<b>other & co", "judgements*")
    text = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"), encoding="utf-8")
    result = cli_here("report", run, other, "--out", tmp_path / "both", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    rows = Reader(page).rows
    assert ["setting", "value in run", "value in <b>other & co"] in rows
    assert ["train.learning_rate", "0.001", "0.002"] in rows
    assert [row[2] for row in rows if row[:2] == ["en", "π1"] and row[3:4] == ["4"]] == ["run", "<b>other & co"]
    assert "<b>other" not in page
    assert "By the model&#39;s own reward: " in page
    assert "By the model's own reward" in (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert "is not compared with run answer by answer: &lt;b&gt;other &amp; co has no judgements yet." in page
    assert (other / "report.json").is_file()
    assert not (other / "report.html").exists()


def both(run: Path, other: Path, folder: Path, *changes: str) -> Conclusion:
    """The comparison of another run with the first."""
    configs = [load(run), load(other, *changes)]
    report.make(configs, folder)
    directories = [RunDir(own.run_dir) for own in configs]
    runs = [Run(*own, collect(*own, own[1].path.name)) for own in zip(configs, directories, strict=True)]
    ((heading, conclusion),) = compare(runs)
    assert heading == "other against run"
    for file in ("report.html", "report.md"):
        assert "other against run" in (folder / file).read_text(encoding="utf-8")
    return conclusion


def test_two_runs_are_compared_answer_by_answer(run: Path, page: str, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    even = both(run, other, tmp_path)
    assert even.sentence.startswith("other's π1 against run's π1: not clear in English, Arabic, Chinese. On average")
    assert {(one.value, one.low, one.high) for one in even.findings} == {(0.0, 0.0, 0.0)}
    shutil.rmtree(other / "iter1" / JUDGED)
    shutil.copytree(other / "iter0" / JUDGED, other / "iter1" / JUDGED)
    reseal(other / "iter1" / JUDGED)
    worse = both(run, other, tmp_path)
    assert worse.sentence.startswith("other's π1 against run's π1: worse in English, Arabic, Chinese. On average -")
    assert worse.heading == "Length-controlled win rate, run's π1 → other's π1, in percentage points"
    assert "Judge: a <judge>, which compared the answers of both with the same answers of reference" in worse.evidence
    own = read_json(run / "report.json")["changes"][0]["difference"]["languages"]["ar"]["length_controlled_win_rate"]
    found = {one.lang: one for one in worse.findings}["ar"]
    assert found.value == pytest.approx(-own["value"])
    assert (found.low, found.high) == pytest.approx((-own["high"], -own["low"]))
    assert "π<sup>1</sup> against run&#39;s π<sup>1</sup>: worse" in (tmp_path / "report.html").read_text("utf-8")


def test_the_report_says_why_two_runs_cannot_be_compared(run: Path, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    because = "other is not compared with run answer by answer: "
    differs = both(run, other, tmp_path, "judge.both_orders=false")
    assert differs.sentence == f"{because}judge.both_orders is True in run and False in other."
    assert not differs.findings
    file = other / "iter1" / JUDGED / "annotations" / "ar.json"
    rows = read_json(file)
    write_json(file, [{**rows[0], "output_1": "another"}, *rows[1:]])
    reseal(other / "iter1" / JUDGED, same_digest=True)
    assert both(run, other, tmp_path).sentence == f"{because}the baseline's answers differ."
    write_json(file, rows[1:])
    reseal(other / "iter1" / JUDGED, same_digest=True)
    assert both(run, other, tmp_path).sentence == f"{because}their judged instructions differ."
    shutil.rmtree(other / "iter1" / JUDGED)
    shutil.rmtree(other / "iter0" / JUDGED)
    for iteration in (0, 1):
        manifest_path(other / f"iter{iteration}" / JUDGED).unlink()
    assert both(run, other, tmp_path).sentence == f"{because}other has no judgements yet."


@pytest.mark.parametrize(
    ("left_out", "shown", "absent"),
    [
        (("judgements*",), "By the model&#39;s own reward", "Judged answers"),
        (("judgements*", "eval*"), "Nothing to compare yet. Finished so far: generate 1", "Held-out"),
        (("judgements*", "eval*", "pairs*", "model*", "metrics*"), "Rewards of the sampled", "Preference pairs"),
        (("iter*",), "Nothing to compare yet. No stage is finished.", "<table"),
    ],
)
def test_an_unfinished_run_is_shown_as_far_as_it_is_finished(
    run: Path, tmp_path: Path, left_out: tuple[str, ...], shown: str, absent: str
) -> None:
    page = make(copied(run, tmp_path / "run", *left_out))
    assert shown in page
    assert absent not in page.split('id="facts"')[0]


def test_a_truncated_line_of_metrics_is_ignored(run: Path, page: str, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    with (own / "iter1" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "lo\xff')
    assert make(own) == page


def test_a_large_run_makes_a_page_of_a_few_megabytes(run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run", "judgements*")
    pairs = read_rows(own / "iter1" / "pairs", Pair)
    long = [{"role": "assistant", "content": "长" * 4000}]
    many = [
        replace(pairs[number % len(pairs)], id=f"p{number}", chosen=long, rejected=long) for number in range(20_000)
    ]
    write_rows(own / "iter1" / "pairs" / "pairs.parquet", Pair, many)
    reseal(own / "iter1" / "pairs")
    page = make(own)
    (shown,) = re.findall(r"(\d+) of 20,000 examples, sampled evenly", page)
    assert int(shown) == examples.SHOWN // len(INSTRUCTIONS) * len(INSTRUCTIONS)
    assert len(page.encode()) < 10e6
    assert f'["{"长" * examples.TEXT_CHARS}",{4000 - examples.TEXT_CHARS}]' in page


def test_a_sample_is_evenly_spaced() -> None:
    assert examples.evenly(range(10), 3) == [0, 3, 6]
    assert examples.evenly(range(3), 5) == [0, 1, 2]


def test_a_verdict_follows_from_its_distance_to_even(run: Path) -> None:
    found = collected(run)
    for iteration, low, high in (("0", 20.0, 40.0), ("1", 45.0, 55.0)):
        own = found["iterations"][iteration]["judgements"]["languages"]["ar"]
        own["length_controlled_interval"] = [low, high]
    without_start = {**found, "iterations": {"1": found["iterations"]["1"]}, "changes": []}
    assert {one.lang: one.verdict for one in conclude(without_start).findings}["ar"] == "not clear"
    only_start = {**found, "iterations": {"0": found["iterations"]["0"]}, "changes": []}
    assert {one.lang: one.verdict for one in conclude(only_start).findings}["ar"] == "worse"
    against_start = {**found, "settings": {**found["settings"], "judge.baseline": 0}}
    assert conclude(against_start).sentence.startswith(
        "π1 against π0: better in English, Chinese; not clear in Arabic."
    )
    shrunk = found["iterations"]["1"]["judgements"]["languages"]["ar"]
    shrunk |= {"length_controlled_win_rate": 50.0, "length_controlled_standard_error": 0.0}
    plain = conclude(against_start)
    assert plain.heading == "Win rate of π1 against π0, in %"
    assert "too few judgements" in plain.evidence
    assert {one.lang: one.value for one in plain.findings}["ar"] == shrunk["win_rate"]


def test_a_judge_that_tosses_coins_is_not_believed(run: Path) -> None:
    """Its verdicts in both orders agree in half of the cases: the answer comes from the next best measure."""
    found = collected(run)
    bias = found["iterations"]["1"]["judgements"]["position_bias"]
    bias |= {"instructions": 64, "agreement": 55.0}
    conclusion = conclude(found)
    assert conclusion.caution.startswith("The judge a <judge> cannot be used: its verdicts on the same two answers")
    assert "55 % of 64 cases, which is not clearly more than chance" in conclusion.caution
    assert conclusion.sentence.startswith("By the model's own reward: ")
    bias |= {"agreement": 75.0}
    assert not conclude(found).caution


def test_without_win_rates_the_judge_s_ratings_answer(run: Path) -> None:
    found = collected(run)
    gains = {"ar": (0.5, 0.1), "zh": (-0.5, 0.1), "en": (0.1, 0.2)}
    rated: dict[str, Any] = {
        lang: {"questions": 80, "rating": 6.0, "gain": {"mean": mean, "error": error}}
        for lang, (mean, error) in gains.items()
    }
    found["iterations"]["1"]["stages"]["rate"] = {"facts": {"judge": "a judge", "languages": rated}}
    assert not conclude(found).sentence.startswith("By the judge's ratings")  # win rates come first
    for iteration in found["iterations"].values():
        iteration["judgements"] = None
    conclusion = conclude(found)
    assert conclusion.sentence == (
        "By the judge's ratings: π1 against π0: better in Arabic; worse in Chinese; not clear in English."
    )
    assert (conclusion.findings[0].low, conclusion.findings[0].count) == (pytest.approx(0.5 - 0.196, abs=1e-3), 80)
    for own in rated.values():
        del own["gain"]
    assert conclude(found).sentence.startswith("By the model's own reward: ")


def test_several_languages_are_tested_together() -> None:
    """A language that is just clear by itself is not among four; the average is tested by itself."""
    one = Finding("es", 1.0, 0.05, 1.95, 0.0, 0.04)
    others = [Finding(lang, 0.1, -1.0, 1.2, 0.0, 0.9) for lang in ("de", "fr", "ru")]
    average = Finding("average", 1.0, 0.05, 1.95, 0.0, 0.04)
    assert [finding.verdict for finding in together([one])] == ["better"]
    verdicts = {finding.lang: finding.verdict for finding in together([one, *others, average])}
    assert verdicts == dict.fromkeys(("es", "de", "fr", "ru"), "not clear") | {"average": "better"}


def test_differences_are_computed_once(run: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = read_json(run / "report.json")["changes"]
    monkeypatch.setattr(winrates, "changes", lambda *_: pytest.fail("computed again"))
    assert collected(run)["changes"] == known


def test_a_folder_that_is_no_run_is_refused(run: Path, cli_here: Cli, tmp_path: Path) -> None:
    assert_refused(cli_here("report", tmp_path / "nowhere", cwd=tmp_path), "nowhere: ")
    assert_refused(cli_here("report", run, f"--out={run / 'config.yaml'}"), "cannot be written")
    assert not (tmp_path / "nowhere").exists()
    assert_refused(cli_here("report", run, "run", cwd=run.parent), "is named twice")


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_the_page_is_accessible_and_fits_the_screen(run: Path, browser: Any, width: int, scheme: str) -> None:
    """No horizontal scrolling, no error on the console, no request, and no violation of WCAG that axe-core finds."""
    trouble: list[str] = []
    view = {"width": width, "height": 800}
    with browser.new_context(viewport=view, color_scheme=scheme, offline=True) as opened:
        page = opened.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("request", lambda request: trouble.append(request.url))
        page.goto((run / "report.html").as_uri())
        assert trouble == [(run / "report.html").as_uri()]
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("window.hacked") is None
        use_the_examples(page)
        for details in page.locator("summary").all():
            details.click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert violations(page) == []
        assert len(trouble) == 1


@pytest.mark.usefixtures("page")
def test_a_printed_report_is_light_and_nothing_is_folded(run: Path, browser: Any) -> None:
    """Also from a dark screen, and with the backgrounds that carry meaning."""
    with browser.new_context(viewport={"width": 794, "height": 1123}, color_scheme="dark", offline=True) as opened:
        page = opened.new_page()
        page.goto((run / "report.html").as_uri())
        screen = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.emulate_media(media="print", color_scheme="dark")
        assert screen != page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(28, 32, 36)"
        assert page.evaluate("getComputedStyle(document.body).printColorAdjust") == "exact"
        assert not page.locator("nav").first.is_visible()
        folded = page.locator("details tr").all()
        assert folded
        assert all(row.is_visible() for row in folded)


def test_several_runs_with_long_names_fit_a_narrow_screen(run: Path, browser: Any, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "of-a-long-name" / run.name)
    report.make([load(run), load(other)], tmp_path)
    with browser.new_context(viewport={"width": 360, "height": 800}) as opened:
        page = opened.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert violations(page) == []


def use_the_examples(page: Any) -> None:
    cards, count = page.locator("#list .example"), page.locator("#count")
    everything = count.inner_text()
    page.select_option("[name=lang]", "ar")
    assert cards.count()
    text = cards.first.locator(".text").first
    assert (text.get_attribute("lang"), text.evaluate("node => getComputedStyle(node).direction")) == ("ar", "rtl")
    page.select_option("[name=kind]", "judged answers")
    page.select_option("[name=model]", "iteration 1")
    assert count.inner_text() == "4 examples found, 4 shown"
    page.fill("[name=text]", "window.HACKED")
    assert count.inner_text() == "1 example found, 1 shown"
    assert HOSTILE.split()[0] in cards.first.inner_text()
    page.fill("[name=text]", "no such text")
    assert count.inner_text() == "No examples found"
    for name in ("lang", "kind", "model"):
        page.select_option(f"[name={name}]", "")
    page.fill("[name=text]", "")
    assert count.inner_text() == everything
    shown = cards.count()
    page.click("#more")
    assert cards.count() > shown
