"""The report of real runs: what it says, what it does with hostile texts, and how a browser draws it."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli, assert_refused, missing, tiny_tree
from xlr import config
from xlr.evaluation import annotations, winrates
from xlr.records import Pair, Response
from xlr.report import examples, report, tables
from xlr.report.comparison import compare
from xlr.report.conclusion import Conclusion, conclude
from xlr.run.artifact import manifest_path, read_json, read_rows, write_json, write_rows
from xlr.run.context import Context

HOSTILE = '</script><script>window.hacked=1</script><img src=x onerror="window.hacked=1"><!-- {{ 7*7 }} | `x` \u2028'
INSTRUCTIONS = {
    "en": ("Why is the sky blue?", "Name three rivers.", "Give one tip for better sleep.", "What is a library for?"),
    "ar": ("لماذا السماء زرقاء؟", "اذكر ثلاثة أنهار.", "قدم نصيحة واحدة لنوم أفضل.", "ما فائدة المكتبة؟"),
    "zh": ("天空为什么是蓝色的？", "说出三条河流。", "给出一条改善睡眠的建议。", "图书馆有什么用？"),
}
ANSWERS = {"en": "It scatters light.", "ar": "لأن الضوء يتشتت في الهواء.", "zh": "因为空气会散射蓝光。"}


@pytest.fixture(scope="module")
def run(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one iteration in three scripts, judged; one pair's chosen response is hostile."""
    folder = tmp_path_factory.mktemp("report")
    for lang, instructions in INSTRUCTIONS.items():
        rows = [json.dumps({"id": f"q{number}", "instruction": text}) for number, text in enumerate(instructions)]
        (folder / "prompts").mkdir(exist_ok=True)
        (folder / "prompts" / f"{lang}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tree = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree |= {"languages": list(INSTRUCTIONS), "prompts": {"path": str(folder / "prompts")}}
    tree["evaluate"]["prompts"] = tree["prompts"]
    tree["ray"] = {"actors": 2, "cpus_per_actor": 1}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "run", str(folder / "run.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in (folder / "run").iterdir()}
    judge(folder / "run")
    pairs = read_rows(folder / "run" / "iter1" / "pairs", Pair)
    hostile = [{"role": "assistant", "content": HOSTILE}]
    write_rows(
        folder / "run" / "iter1" / "pairs" / "pairs.parquet", Pair, [replace(pairs[0], chosen=hostile), *pairs[1:]]
    )
    return folder / "run"


def judge(run: Path) -> None:
    """What a judge stage leaves: pi^0 loses against the reference answers, pi^1 wins; one judgement fails."""
    for iteration in (0, 1):
        folder = run / f"iter{iteration}" / "judgements"
        (folder / "annotations").mkdir(parents=True)
        answers = read_rows(run / f"iter{iteration}" / "eval" / "responses", Response)
        for lang, instructions in INSTRUCTIONS.items():
            own = [row for row in answers if row.lang == lang]
            rows = [judgement(row, instructions[place], place, iteration) for place, row in enumerate(own)]
            write_json(folder / "annotations" / f"{lang}.json", rows)
        bias = {"position_bias": {"instructions": 11, "second_place_win_rate": 52.5, "agreement": 90.9}}
        figures = winrates.measure(annotations.read(folder / "annotations"), None, None) | bias
        write_json(folder / "winrates.json", figures)
        facts = {
            "judge": "a <judge>",
            "baseline": "reference",
            "prompt_tokens": 1200,
            "completion_tokens": 24,
            "cost": 0.5,
        }
        manifest = read_json(manifest_path(run / f"iter{iteration}" / "eval"))
        own = {"stage": "judge", "rows": 12, "seconds": 9.0, "facts": facts, "digest": str(figures["win_rate"])}
        write_json(manifest_path(folder), manifest | own)


def judgement(row: Response, instruction: str, place: int, iteration: int) -> dict[str, Any]:
    preferences = [1.1 + 0.7 * iteration + 0.02 * place, 1.2 + 0.6 * iteration]
    failed = row.lang == "zh" and place == 3
    return {
        "id": row.id,
        "lang": row.lang,
        "instruction": instruction,
        "output_1": ANSWERS[row.lang] * (place + 1),
        "generator_1": "reference",
        "output_2": HOSTILE if place == 0 else row.response.strip() or "?",
        "generator_2": f"iteration {iteration}",
        "preference": None if failed else sum(preferences) / 2,
        "preferences": [None, None] if failed else preferences,
        "annotator": "a <judge>",
    }


def context(run: Path) -> Context:
    return Context(config.load(run, [f"run_dir={run}"]))


def make(run: Path) -> str:
    report.make([context(run)], run)
    return (run / "report.html").read_text(encoding="utf-8")


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


def test_the_page_answers_in_every_language_and_says_how_sure_it_is(run: Path, page: str) -> None:
    assert "π<sup>1</sup> against π<sup>0</sup>: better in English, Arabic, Chinese." in page
    first, second = (annotations.read(run / f"iter{t}" / "judgements" / "annotations") for t in (0, 1))
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
    assert ["π1", "16", f"{100 * evaluation['preferences']['accuracy']:.1f}"] in [row[:3] for row in rows]
    pairs = read_json(manifest_path(run / "iter1" / "pairs"))["facts"]
    assert ["1", "ar", str(pairs["ar"]["pairs"]), f"{pairs['ar']['alpha']:.3f}"] in [row[:4] for row in rows]
    assert ["π1", "11", "52.5", "90.9"] in rows
    assert "Judge: a &lt;judge&gt;, which compared the answers with those of reference" in page
    for words in (
        "log πᵗ⁻¹(y | G(x))",
        "length_controlled_minimal",
        "0.50",
        "1,200 asked, 24 answered",
        "Reward margin",
    ):
        assert words in page


def test_the_hours_are_those_of_the_processors_that_computed(run: Path) -> None:
    """Two actors of one CPU sample and score; one process pairs; one rank of one thread trains."""
    found = report.collect(context(run), "run")
    stages = found["iterations"]["1"]["stages"]
    cpus = {name: stages[name]["processors"]["cpus"] for name in ("generate", "score", "pair", "train")}
    assert cpus == {"generate": 2, "score": 2, "pair": 1, "train": 1}
    stages["generate"] |= {"seconds": 1800.0, "processors": {"cpus": 64.0, "gpus": 16.0}}
    (costs,) = tables.costs([found])
    rows = {row[:2]: dict(zip(costs.columns, row, strict=True)) for row in costs.rows}
    sampling = rows["1", "generate"]
    assert (sampling["on"], sampling["GPU-hours"], sampling["CPU-hours"]) == ("64 CPUs, 16 GPUs", "8.00", "32.00")
    assert rows["1", "pair"]["CPU-hours"] == "< 0.01"
    assert rows["all", ""]["GPU-hours"] == "8.00"


def test_what_was_left_out_is_counted(run: Path) -> None:
    found = report.collect(context(run), "run")
    stages = found["iterations"]["1"]["stages"]
    stages["score"]["facts"]["dropped"] = {"ar empty": 3, "en longer than score.max_length=9": 1}
    stages["pair"]["facts"]["zh"] |= {"filtered": {"repeated": 2}, "dropped": {"one candidate": 4}}
    stages["train"]["facts"]["warnings"] = ["step 3: chosen responses become less likely"]
    responses, pairs, training = tables.data([found])
    assert [row[-1] for row in responses.rows] == ["1 longer than score.max_length=9", "3 empty", ""]
    assert pairs.rows[2][-2:] == ("2 repeated", "4 one candidate")
    assert training.rows == [("π1", "12", "3", "0", "step 3: chosen responses become less likely")]


def test_hostile_texts_stay_texts_and_nothing_is_fetched(page: str) -> None:
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
    table = tables.Table("t", ("model", "reward"), [("a|b <i> `c`", "1")]).in_markdown()
    assert "| a\\|b \\<i\\> \\`c\\` | 1 |" in table


def test_the_same_run_gives_the_same_bytes_from_anywhere_in_any_locale(
    run: Path, page: str, cli: Cli, tmp_path: Path
) -> None:
    own = copied(run, tmp_path / "elsewhere" / "run")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "MPLBACKEND": "tkagg"}
    result = cli("report", "run", cwd=own.parent, COLUMNS="120", **plain)
    assert result.returncode == 0, result.stderr
    assert "Judged answers" in result.stdout
    assert (own / "report.html").read_bytes() == page.encode()
    assert (own / "report.md").read_bytes() == (run / "report.md").read_bytes()
    assert "| ar | π1 |" in (run / "report.md").read_text(encoding="utf-8")


def test_two_runs_stand_side_by_side(run: Path, cli: Cli, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "<b>other & co", "judgements*")
    text = (other / "config.yaml").read_text(encoding="utf-8")
    (other / "config.yaml").write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"), encoding="utf-8")
    result = cli("report", run, other, "--out", tmp_path / "both", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "both" / "report.html").read_text(encoding="utf-8")
    rows = Reader(page).rows
    assert ["setting", "value in run", "value in <b>other & co"] in rows
    assert ["train.learning_rate", "0.001", "0.002"] in rows
    assert [row[2] for row in rows if row[:2] == ["en", "π1"] and row[3] == "4"] == ["run", "<b>other & co"]
    assert "<b>other" not in page
    assert "By the implicit reward, with no judge yet" in page
    assert "By the implicit reward" in (tmp_path / "both" / "report.md").read_text(encoding="utf-8")
    assert "is not compared with run answer by answer: &lt;b&gt;other &amp; co has no judgements yet." in page
    assert (other / "report.json").is_file()
    assert not (other / "report.html").exists()


def both(run: Path, other: Path, folder: Path, *changes: str) -> Conclusion:
    """What is said of another run against the first."""
    contexts = [context(run), Context(config.load(other, [f"run_dir={other}", *changes]))]
    report.make(contexts, folder)
    ((heading, conclusion),) = compare([(own, report.collect(own, own.run.path.name)) for own in contexts])
    assert heading == "other against run"
    for file in ("report.html", "report.md"):
        assert "other against run" in (folder / file).read_text(encoding="utf-8")
    return conclusion


def test_two_runs_are_compared_answer_by_answer(run: Path, page: str, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    even = both(run, other, tmp_path)
    assert even.sentence.startswith("other's π1 against run's π1: not clear in English, Arabic, Chinese. On average")
    assert {(one.value, one.low, one.high) for one in even.findings} == {(0.0, 0.0, 0.0)}
    shutil.rmtree(other / "iter1" / "judgements")
    shutil.copytree(other / "iter0" / "judgements", other / "iter1" / "judgements")
    worse = both(run, other, tmp_path)
    assert worse.sentence.startswith("other's π1 against run's π1: worse in English, Arabic, Chinese. On average -")
    assert worse.figure == "Length-controlled win rate, run's π1 → other's π1, in points"
    assert "Judge: a <judge>, which compared the answers of both with the same ones of reference" in worse.basis
    own = read_json(run / "report.json")["changes"][0]["difference"]["languages"]["ar"]["length_controlled_win_rate"]
    found = {one.lang: one for one in worse.findings}["ar"]
    assert found.value == pytest.approx(-own["value"])
    assert (found.low, found.high) == pytest.approx((-own["high"], -own["low"]))
    assert "π<sup>1</sup> against run&#39;s π<sup>1</sup>: worse" in (tmp_path / "report.html").read_text("utf-8")


def test_runs_that_cannot_be_compared_are_said_to_be_so(run: Path, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "other")
    because = "other is not compared with run answer by answer: "
    differs = both(run, other, tmp_path, "judge.both_orders=false")
    assert differs.sentence == f"{because}judge.both_orders is True there and False here."
    assert not differs.findings
    file = other / "iter1" / "judgements" / "annotations" / "ar.json"
    rows = read_json(file)
    write_json(file, [{**rows[0], "output_1": "another"}, *rows[1:]])
    assert both(run, other, tmp_path).sentence == f"{because}the baseline's answers differ."
    write_json(file, rows[1:])
    assert both(run, other, tmp_path).sentence == f"{because}their judged instructions differ."
    shutil.rmtree(other / "iter1" / "judgements")
    shutil.rmtree(other / "iter0" / "judgements")
    for iteration in (0, 1):
        manifest_path(other / f"iter{iteration}" / "judgements").unlink()
    assert both(run, other, tmp_path).sentence == f"{because}other has no judgements yet."


@pytest.mark.parametrize(
    ("left_out", "shown", "absent"),
    [
        (("judgements*",), "By the implicit reward", "Judged answers"),
        (("judgements*", "eval*"), "Nothing to compare yet. Finished so far: generate 1", "Held-out"),
        (("judgements*", "eval*", "pairs*", "model*", "metrics*"), "Rewards of the sampled", "Preference pairs"),
        (("iter*",), "Nothing to compare yet. No stage is finished.", "<table"),
    ],
)
def test_a_run_is_shown_as_far_as_it_is(
    run: Path, tmp_path: Path, left_out: tuple[str, ...], shown: str, absent: str
) -> None:
    page = make(copied(run, tmp_path / "run", *left_out))
    assert shown in page
    assert absent not in page.split('id="facts"')[0]


def test_a_torn_line_of_metrics_costs_that_line_alone(run: Path, page: str, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run")
    with (own / "iter1" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 99, "lo\xff')
    assert make(own) == page


def test_a_large_run_gives_a_page_of_a_few_megabytes(run: Path, tmp_path: Path) -> None:
    own = copied(run, tmp_path / "run", "judgements*")
    pairs = read_rows(own / "iter1" / "pairs", Pair)
    long = [{"role": "assistant", "content": "长" * 4000}]
    many = [
        replace(pairs[number % len(pairs)], id=f"p{number}", chosen=long, rejected=long) for number in range(20_000)
    ]
    write_rows(own / "iter1" / "pairs" / "pairs.parquet", Pair, many)
    page = make(own)
    (shown,) = re.findall(r"(\d+) of 20,000, spread evenly", page)
    assert int(shown) == examples.SHOWN // len(INSTRUCTIONS) * len(INSTRUCTIONS)
    assert len(page.encode()) < 10e6
    assert f'["{"长" * examples.TEXT_CHARS}",{4000 - examples.TEXT_CHARS}]' in page


def test_a_sample_is_spread_over_all_rows() -> None:
    assert examples.evenly(range(10), 3) == [0, 3, 6]
    assert examples.evenly(range(3), 5) == [0, 1, 2]


def test_a_verdict_says_no_more_than_its_interval(run: Path) -> None:
    found = report.collect(context(run), "run")
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
    assert plain.figure == "Win rate of π1 against π0, in %"
    assert "too few judgements" in plain.basis
    assert {one.lang: one.value for one in plain.findings}["ar"] == shrunk["win_rate"]
    assert tables.share_interval(0.5, 16) == pytest.approx((0.2800, 0.7200), abs=1e-4)


def test_differences_are_measured_once(run: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = read_json(run / "report.json")["changes"]
    monkeypatch.setattr(winrates, "changes", lambda *_: pytest.fail("measured again"))
    assert report.collect(context(run), "run")["changes"] == known


def test_what_is_no_run_is_refused(run: Path, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("report", tmp_path / "nowhere", cwd=tmp_path), "nowhere: ")
    assert_refused(cli("report", run, f"--out={run / 'config.yaml'}"), "cannot be written")
    assert not (tmp_path / "nowhere").exists()
    assert_refused(cli("report", run, "run", cwd=run.parent), "is named twice")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window."""
    chromium = shutil.which("chromium") or missing("chromium is not installed (Debian's package of that name)")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=str(chromium), args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
def test_a_browser_draws_it_for_everybody(run: Path, browser: Any, width: int, scheme: str) -> None:
    """No sideways scrolling, no complaint of the browser, no request, no breach of WCAG that axe-core finds."""
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
        assert breaches(page) == []
        assert len(trouble) == 1


def breaches(page: Any) -> list[tuple[str, str]]:
    """Of the rules of accessibility: rule and element."""
    import axe_playwright_python

    page.evaluate((Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run({runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa']})")
    assert found["passes"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found["violations"]]


def test_a_browser_draws_several_runs_of_long_names(run: Path, browser: Any, tmp_path: Path) -> None:
    other = copied(run, tmp_path / "of-a-long-name" / run.name)
    report.make([context(run), context(other)], tmp_path)
    with browser.new_context(viewport={"width": 360, "height": 800}) as opened:
        page = opened.new_page()
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert breaches(page) == []


def use_the_examples(page: Any) -> None:
    cards, count = page.locator(".example"), page.locator("#count")
    everything = count.inner_text()
    page.select_option("[name=lang]", "ar")
    assert cards.count()
    text = cards.first.locator(".text").first
    assert (text.get_attribute("lang"), text.evaluate("node => getComputedStyle(node).direction")) == ("ar", "rtl")
    page.select_option("[name=kind]", "judged answers")
    page.select_option("[name=model]", "iteration 1")
    assert count.inner_text() == "4 examples found, 4 of them below"
    page.fill("[name=text]", "window.HACKED")
    assert count.inner_text() == "1 example found, 1 of them below"
    assert HOSTILE.split()[0] in cards.first.inner_text()
    page.fill("[name=text]", "no such text")
    assert count.inner_text() == "No example found"
    for name in ("lang", "kind", "model"):
        page.select_option(f"[name={name}]", "")
    page.fill("[name=text]", "")
    assert count.inner_text() == everything
    shown = cards.count()
    page.click("#more")
    assert cards.count() > shown
