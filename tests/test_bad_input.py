"""Bad input ends with exit code 2 and one message that says what to do, without a traceback or partial artefacts."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny
from tests.conftest import Cli, assert_refused
from xlr.commands import cli as cli_module
from xlr.shipped import RECIPES

Tree = dict[str, Any]
Break = Callable[[Tree, Path], None]


def own_prompts(tree: Tree, folder: Path) -> Path:
    target = folder / "prompts"
    shutil.copytree(RECIPES / "quickstart" / "prompts", target)
    tree["prompts"] = {"path": str(target)}
    return target


def own_model(tree: Tree, folder: Path, which: str) -> Path:
    target = folder / f"{which}-copy"
    shutil.copytree(tree["model"][which], target)
    tree["model"] = tree["model"] | {which: str(target)}
    return target


def broken_line(tree: Tree, folder: Path) -> None:
    file = own_prompts(tree, folder) / "es.jsonl"
    file.write_text(file.read_text(encoding="utf-8") + '{"instruction_id": "q99", "instr', encoding="utf-8")


def duplicated_id(tree: Tree, folder: Path) -> None:
    file = own_prompts(tree, folder) / "es.jsonl"
    first = file.read_text(encoding="utf-8").splitlines(True)[0]
    file.write_text(file.read_text(encoding="utf-8") + first, encoding="utf-8")


def id_that_english_lacks(tree: Tree, folder: Path) -> None:
    file = own_prompts(tree, folder) / "en.jsonl"
    file.write_text("".join(file.read_text(encoding="utf-8").splitlines(True)[1:]), encoding="utf-8")


def empty_instruction(tree: Tree, folder: Path) -> None:
    file = own_prompts(tree, folder) / "es.jsonl"
    row = json.dumps({"instruction_id": "q01", "instruction": " "})
    file.write_text(row + "\n" + "".join(file.read_text(encoding="utf-8").splitlines(True)[1:]), encoding="utf-8")


def unknown_language(tree: Tree, folder: Path) -> None:
    tree["languages"] = ["en", "klingon"]


def no_english(tree: Tree, folder: Path) -> None:
    (own_prompts(tree, folder) / "en.jsonl").unlink()


def no_chat_template(tree: Tree, folder: Path) -> None:
    (own_model(tree, folder, "aligned") / "chat_template.jinja").unlink()


def other_tokenizer(tree: Tree, folder: Path) -> None:
    tree["model"] = tree["model"] | {"initial": str(tiny.save(folder / "other", seed=1, family="llama3"))}


def weights_with_nan(tree: Tree, folder: Path) -> None:
    file = own_model(tree, folder, "aligned") / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def no_weights(tree: Tree, folder: Path) -> None:
    (own_model(tree, folder, "aligned") / "model.safetensors").unlink()


def truncated_weights(tree: Tree, folder: Path) -> None:
    file = own_model(tree, folder, "aligned") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def model_that_does_not_exist(tree: Tree, folder: Path) -> None:
    tree["model"] = tree["model"] | {"aligned": str(folder / "nowhere")}


def sampler_that_is_not_installed(tree: Tree, folder: Path) -> None:
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed here")
    tree["generate"] = tree["generate"] | {"backend": "vllm"}


def unwritable_run_directory(tree: Tree, folder: Path) -> None:
    (folder / "file").write_text("")
    tree["run_dir"] = str(folder / "file" / "run")


CASES: list[tuple[Break, str]] = [
    (broken_line, "es.jsonl:25: not valid JSON"),
    (duplicated_id, "es.jsonl:25: duplicate id 'q01'"),
    (id_that_english_lacks, "the id 'q01' is in es but not in English"),
    (empty_instruction, "es.jsonl:1: the instruction 'q01' is empty"),
    (unknown_language, '"klingon" is no language tag of BCP 47'),
    (no_english, "has no en.jsonl or en.json"),
    (no_chat_template, "has no chat template; add a chat_template.jinja"),
    (other_tokenizer, "do not share a tokenizer"),
    (weights_with_nan, "model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
    (no_weights, "aligned-copy: holds no model.safetensors"),
    (truncated_weights, "aligned-copy/model.safetensors: missing, damaged or cut off"),
    (model_that_does_not_exist, "nowhere: no such folder"),
    (sampler_that_is_not_installed, 'vllm is not installed; `pip install ".[vllm]"`'),
    (unwritable_run_directory, "cannot be written"),
]


@pytest.mark.parametrize(("break_input", "message"), CASES, ids=[case[0].__name__ for case in CASES])
def test_bad_input_is_refused_with_its_position_and_a_fix(
    break_input: Break,
    message: str,
    cli: Cli,
    cli_here: Cli,
    tiny_tree: Tree,
    write_config: Callable[[Tree], Path],
    tmp_path: Path,
) -> None:
    break_input(tiny_tree, tmp_path)
    found_by_workers = break_input is weights_with_nan
    result = (cli if found_by_workers else cli_here)("run", write_config(tiny_tree))
    assert_refused(result, message)
    assert not list((tmp_path / "run").glob("iter*/*.manifest.json"))
    assert not list((tmp_path / "run").rglob("*.parquet"))


def test_weights_with_nan_are_refused_by_the_trainer_too(
    cli: Cli, tiny_tree: Tree, write_config: Callable[[Tree], Path], tmp_path: Path
) -> None:
    weights_with_nan(tiny_tree, tmp_path)
    damaged = tiny_tree["model"]["aligned"]
    tiny_tree["model"] = {"initial": damaged}
    preferences = str(RECIPES / "quickstart" / "preferences.jsonl")
    tiny_tree["align"] = tiny_tree["train"] | {"preferences": preferences, "processes": 2}
    assert_refused(cli("align", write_config(tiny_tree)), "up_proj.weight holds NaN or infinity")
    assert not (tmp_path / "run" / "iter0" / "model").exists()


def test_a_run_directory_with_another_configuration_is_refused(
    cli: Cli, tiny_tree: Tree, write_config: Callable[[Tree], Path]
) -> None:
    source = write_config(tiny_tree)
    assert cli("generate", source).returncode == 0
    assert_refused(cli("generate", source, "generate.temperature=0.8"), "generate.temperature was 0.9 and is now 0.8")
    assert_refused(cli("run", source, "seed=7"), "seed was 42 and is now 7")


def test_a_stage_without_its_input_names_the_command_to_run(
    cli_here: Cli, tiny_tree: Tree, write_config: Callable[[Tree], Path], tmp_path: Path
) -> None:
    source = write_config(tiny_tree)
    assert_refused(cli_here("score", source), f"run `xlr generate {tmp_path / 'run'} --iteration 1` first")
    assert_refused(cli_here("pair", source), f"run `xlr score {tmp_path / 'run'} --iteration 1` first")
    assert_refused(cli_here("train", source), f"run `xlr pair {tmp_path / 'run'} --iteration 1` first")
    assert_refused(cli_here("train", source, "--iteration", 9), "not a stage of this run")


def test_init_copies_a_recipe_and_never_overwrites_a_file(cli_here: Cli, tmp_path: Path) -> None:
    assert cli_here("init", "mine", "--recipe", "llama3-8b", cwd=tmp_path).returncode == 0
    assert cli_here("config", "mine.yaml", cwd=tmp_path).returncode == 0
    assert_refused(cli_here("init", "mine", cwd=tmp_path), "exists already")
    assert_refused(cli_here("init", "other", "--recipe", "nothing", cwd=tmp_path), "quickstart")
    assert_refused(cli_here("run", "absent.yaml", cwd=tmp_path), "xlr init")


def test_a_ray_cluster_that_does_not_answer_is_named(
    cli: Cli, tiny_tree: Tree, write_config: Callable[[Tree], Path]
) -> None:
    result = cli("generate", write_config(tiny_tree), RAY_ADDRESS="127.0.0.1:1")
    assert_refused(result, "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there")


def two_files_of_a_language(tree: Tree, folder: Path) -> str:
    (own_prompts(tree, folder) / "es.json").write_text("[]")
    return "es.jsonl: es.json is beside it, and only one of them would be read; remove the old one"


def invisible_instruction(tree: Tree, folder: Path) -> str:
    file = own_prompts(tree, folder) / "es.jsonl"
    first, *others = file.read_text(encoding="utf-8").splitlines(True)
    row = json.loads(first) | {"instruction": "\u200b\u2060"}
    file.write_text("".join([*others, json.dumps(row)]), encoding="utf-8")
    return "es.jsonl:24: the instruction 'q01' is empty: `instruction` must be a text with a visible character"


def device_as_prompts(tree: Tree, folder: Path) -> str:
    file = own_prompts(tree, folder) / "es.jsonl"
    file.unlink()
    file.symlink_to("/dev/zero")
    return "es.jsonl: is a pipe, a socket or a device; name a regular file"


def escape_codes_in_an_id(tree: Tree, folder: Path) -> str:
    file = own_prompts(tree, folder) / "es.jsonl"
    row = json.dumps({"instruction_id": "\x1b[31m[/red]", "instruction": "¿Qué?"})
    file.write_text(file.read_text(encoding="utf-8") + row, encoding="utf-8")
    return "es.jsonl:25: instruction_id contains the control character \\u001b; remove it"


def boolean_as_limit(tree: Tree, folder: Path) -> str:
    tree["prompts"] = tree["prompts"] | {"limit": True}
    return "run.yaml: prompts.limit: input should be a valid integer (it is true)"


@pytest.mark.usefixtures("same_signals")
@pytest.mark.parametrize(
    "break_input",
    [two_files_of_a_language, invisible_instruction, device_as_prompts, escape_codes_in_an_id, boolean_as_limit],
)
def test_bad_data_ends_the_command_with_exit_code_2(
    break_input: Callable[[Tree, Path], str],
    tiny_tree: Tree,
    write_config: Callable[[Tree], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process, because only reading is tested."""
    message = break_input(tiny_tree, tmp_path)
    monkeypatch.setattr(sys, "argv", ["xlr", "run", str(write_config(tiny_tree))])
    with pytest.raises(SystemExit) as ended:
        cli_module.main()
    said = capsys.readouterr().err
    assert (ended.value.code, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert message in said
    assert not list((tmp_path / "run").rglob("*.manifest.json"))
