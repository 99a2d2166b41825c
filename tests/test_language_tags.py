"""A whole run in languages with hyphens, with a name of its own, and without a detector."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Cli, assert_refused, tiny_tree
from tests.rows import read_rows
from xlr.configfile import load
from xlr.errors import UserError
from xlr.records import Pair, Response, Score
from xlr.rewarding import pairs
from xlr.run.context import Context
from xlr.run.files import read_json
from xlr.run.manifests import rows_of

# pt is the beginning of pt-BR: no file of one may count as the other's.
LANGUAGES = ["en", "pt", "pt-br", {"tag": "ha", "name": "Hausa of Kano"}, "quc"]
TAGS = ["en", "pt", "pt-BR", "ha", "quc"]
INSTRUCTIONS = {
    "en": ["Name three rivers.", "Why is the sky blue?"],
    "pt": ["Diga o nome de três rios.", "Porque é o céu azul?"],
    "pt-BR": ["Cite três rios.", "Por que o céu é azul?"],
    "ha": ["Ambaci koguna uku.", "Me ya sa sama take shuɗi?"],
    "quc": ["Chabʼij oxib nimaʼ.", "Jas che rax ri kaj?"],
}


@pytest.fixture(scope="module")
def finished(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; its prompts are a table with a column for each language."""
    folder = tmp_path_factory.mktemp("tags")
    rows = [{"id": number, **{tag: INSTRUCTIONS[tag][number] for tag in TAGS}} for number in range(2)]
    (folder / "wide.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "files").mkdir()
    for tag in TAGS:
        own = [json.dumps({"id": f"q{number}", "instruction": text}) for number, text in enumerate(INSTRUCTIONS[tag])]
        (folder / "files" / f"{tag}.jsonl").write_text("\n".join(own), encoding="utf-8")
    tree: dict[str, Any] = tiny_tree.__wrapped__(tiny_models, folder)  # type: ignore[attr-defined]
    tree |= {"languages": LANGUAGES, "prompts": {"path": str(folder / "wide.jsonl")}}
    tree["evaluate"] = {"prompts": {"path": str(folder / "files")}, "max_new_tokens": 12}
    tree["pair"] = {"filters": ["repeated"]}
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    command = [sys.executable, "-m", "xlr", "run", str(folder / "run.yaml")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder


def test_every_language_has_its_own_rows(finished: Path) -> None:
    first = finished / "run" / "iter1"
    names = {path.name for path in (first / "responses").glob("*.parquet")}
    assert names == {f"{tag}-00000.parquet" for tag in TAGS}
    for tag in TAGS:
        rows = rows_of(first / "responses", Response, part=tag)
        assert {row.lang for row in rows} == {tag}
        assert len(rows) == 2 * 3
    assert {pair.lang for pair in read_rows(first / "pairs", Pair)} == set(TAGS)
    assert set(read_json(first / "responses.manifest.json")["parts"]) == set(TAGS)


def test_the_name_of_a_language_decides_its_scores_alone(finished: Path) -> None:
    parts = read_json(finished / "run" / "iter1" / "scores.manifest.json")["parts"]
    names = {tag: {key: value for key, value in own["inputs"].items() if "name" in key} for tag, own in parts.items()}
    assert names["ha"] == {"name of ha": "Hausa of Kano"}
    assert names["en"] == names["pt"] == {}


def test_another_name_is_another_configuration(finished: Path, cli_here: Cli) -> None:
    other = "languages=[en, pt, pt-BR, {tag: ha, name: Hausa}, quc]"
    found = cli_here("score", finished / "run", "-i", "1", other)
    assert_refused(found, "name of ha (Hausa) has changed since")


def test_a_language_that_nothing_detects_has_no_rate(finished: Path) -> None:
    facts = read_json(finished / "run" / "iter1" / "scores.manifest.json")["facts"]["languages"]
    assert facts["quc"]["in_language"] is None
    assert facts["quc"]["flaws"].get("wrong_language") is None
    assert all(facts[tag]["in_language"] is not None for tag in TAGS[:-1])
    assert {row.detected_lang for row in rows_of(finished / "run" / "iter1" / "scores", Score, part="quc")} == {""}
    answers = read_json(finished / "run" / "iter1" / "eval" / "eval.json")["languages"]
    assert answers["quc"]["in_language"] is None
    page = (finished / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("not detected") >= 2
    assert "without Kʼicheʼ, which no installed detector knows" in page
    assert "Hausa of Kano" in page
    assert 'lang="pt-BR"' in page


def test_conditions_name_the_wider_detector(finished: Path) -> None:
    conditions = read_json(finished / "run" / "iter1" / "scores.manifest.json")["conditions"]["scores.parts"]
    assert "version of pycld2" in conditions


def test_data_says_what_is_not_detected(finished: Path, cli_here: Cli) -> None:
    found = cli_here("data", finished / "run.yaml", COLUMNS="200")
    assert found.returncode == 0, found.stderr
    text = " ".join(found.stdout.split())
    assert "Kʼicheʼ (quc) is not detected: no detector knows it." in text
    assert "(ha) is not detected" not in text


def test_a_filter_that_needs_a_detector_is_refused_or_warned_of(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    context = Context(load(str(finished / "run.yaml"), ["pair.filters=[wrong_language]"]))
    pairs.check(context)
    said = " ".join(capsys.readouterr().out.split())
    assert "wrong_language has no effect in quc (Kʼicheʼ): no detector knows it" in said
    monkeypatch.setattr("xlr.detection.importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"wrong_language would have no effect in ha \(Hausa of Kano\)"):
        pairs.check(context)


def test_certify_takes_any_spelling_of_a_tag(finished: Path, cli: Cli) -> None:
    found = cli("certify", finished / "run", "--prompts", 1, "--languages", "pt-br,quc", "--json")
    assert found.returncode == 0, found.stderr
    languages = json.loads(found.stdout)["languages"]
    assert list(languages) == ["pt-BR", "quc"]
    assert languages["quc"]["name"] == "Kʼicheʼ"
    assert languages["quc"]["modes"]["crosslingual"]["candidates"]["in_language"] is None
