"""Prompts and responses that exceed a model's positions are refused before anything is computed."""

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from xlr import configfile, pipeline
from xlr.errors import UserError
from xlr.run.context import Context

Tree = dict[str, Any]
POSITIONS = 1024  # of the tiny models


def check(tree: Tree) -> None:
    path = Path(tree["run_dir"]).with_name("run.yaml")
    path.write_text(json.dumps(tree), encoding="utf-8")
    pipeline.check(Context(configfile.load(path)))


def refused(tree: Tree) -> str:
    begun = time.monotonic()
    with pytest.raises(UserError) as error:
        check(tree)
    assert time.monotonic() - begun < 20
    assert "\n" not in str(error.value)
    return str(error.value)


def with_prompt(tree: Tree, section: str, text: str, folder: Path) -> None:
    """Replace the first prompt of a section in Spanish."""
    own = folder / section.replace(".", "-")
    where = tree["evaluate"] if section == "evaluate" else tree
    shutil.copytree(where["prompts"]["path"], own)
    rows = [json.loads(line) for line in (own / "es.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[0]["instruction"] = text
    (own / "es.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    where["prompts"] = where["prompts"] | {"path": str(own)}


def test_the_plain_configuration_passes(tiny_tree: Tree) -> None:
    check(tiny_tree)


@pytest.mark.parametrize("section", ["prompts", "evaluate"])
def test_an_instruction_of_a_megabyte_is_refused_quickly(section: str, tiny_tree: Tree, tmp_path: Path) -> None:
    with_prompt(tiny_tree, section, "por qué " * 130_000, tmp_path)
    said = refused(tiny_tree)
    assert re.match("the prompt es 'q[0-9]+' has [0-9]{3},[0-9]{3} tokens", said)
    assert "exceed the 1,024 positions of" in said
    assert "shorten or remove it in every language" in said


@pytest.mark.parametrize(("section", "setting"), [("generate", "generate"), ("evaluate", "evaluate")])
def test_responses_that_may_exceed_the_positions_are_refused(section: str, setting: str, tiny_tree: Tree) -> None:
    tiny_tree[section] = tiny_tree[section] | {"max_new_tokens": POSITIONS - 20}
    said = refused(tiny_tree)
    assert f"{setting}.max_new_tokens=1004: with the " in said
    assert "tokens of the prompt en " in said
    limit = int(said.split("set it to ")[1].split(" ")[0])
    tiny_tree[section] = tiny_tree[section] | {"max_new_tokens": limit}
    tiny_tree["score"] = tiny_tree["score"] | {"max_length": POSITIONS}
    tiny_tree["train"] = tiny_tree["train"] | {"max_length": POSITIONS}
    check(tiny_tree)
    tiny_tree[section] = tiny_tree[section] | {"max_new_tokens": POSITIONS}
    assert f"{setting}.max_new_tokens=1024: leaves no room for a prompt" in refused(tiny_tree)


def test_lengths_beyond_the_positions_are_refused_where_something_can_be_as_long(tiny_tree: Tree) -> None:
    tiny_tree["generate"] = tiny_tree["generate"] | {"max_new_tokens": POSITIONS - 20}
    longest = int(refused(tiny_tree).split("set it to ")[1].split(" ")[0])
    tiny_tree["generate"] = tiny_tree["generate"] | {"max_new_tokens": longest}
    said = refused(tiny_tree)
    assert "score.max_length=8192: the " in said
    assert "tokens of the prompt es 'q" in said
    assert "set score.max_length to 1024 or less" in said
    tiny_tree["score"] = tiny_tree["score"] | {"max_length": POSITIONS}
    assert "train.max_length=4096: the " in refused(tiny_tree)
    tiny_tree["train"] = tiny_tree["train"] | {"max_length": POSITIONS}
    check(tiny_tree)


def test_a_translation_needs_room_for_two_responses(tiny_tree: Tree) -> None:
    tiny_tree["score"] = tiny_tree["score"] | {"reward": "translate", "max_length": POSITIONS}
    tiny_tree["generate"] = tiny_tree["generate"] | {"max_new_tokens": 600}
    assert "with score.reward=translate, a response and its translation can exceed the 1,024" in refused(tiny_tree)


def preferences(folder: Path, answer: str) -> str:
    file = folder / "preferences.jsonl"
    rows = [{"id": "a", "prompt": "x", "chosen": "y", "rejected": "z"}]
    rows.append({"id": "long", "prompt": "x", "chosen": answer, "rejected": "z"})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_preferences_beyond_the_positions_are_refused_or_left_out(tiny_tree: Tree, tmp_path: Path) -> None:
    tiny_tree["evaluate"] = tiny_tree["evaluate"] | {"preferences": preferences(tmp_path, "word " * 600)}
    assert "preferences.jsonl: the preference 'long' has" in refused(tiny_tree)
    align = preferences(tmp_path, "word " * 600)
    del tiny_tree["evaluate"]
    tiny_tree["model"] = {"initial": tiny_tree["model"]["initial"]}
    tiny_tree["align"] = tiny_tree["train"] | {"preferences": align}
    assert "set align.max_length to 1024 or less" in refused(tiny_tree)
    tiny_tree["align"] = tiny_tree["align"] | {"max_length": POSITIONS}
    check(tiny_tree)


def test_a_local_judge_must_read_the_questions(tiny_tree: Tree, tmp_path: Path) -> None:
    judge = tiny.save(tmp_path / "judge", seed=5)
    config = json.loads((judge / "config.json").read_text())
    tiny_tree["judge"] = {"backend": "transformers", "model": str(judge)}
    check(tiny_tree)
    (judge / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 64}))
    said = refused(tiny_tree)
    assert "the question about the prompt en " in said
    assert "but the judge reads 62" in said
    no_system = tiny.CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'system' %}")
    (judge / "config.json").write_text(json.dumps(config))
    (judge / "chat_template.jinja").write_text(no_system)
    assert "drops a message (the system's message" in refused(tiny_tree)
