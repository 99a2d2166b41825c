"""Compiled kernels are kept on the node, in a folder that nobody else can have filled."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xlr.model import caches


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with a GPU; the path of its cache."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in caches._VARIABLES:
        monkeypatch.setenv(variable, "")  # so that monkeypatch restores it
        monkeypatch.delenv(variable)
    return tmp_path / f"xlr-cache-{os.getuid()}"


def test_the_folder_is_made_once_and_is_private(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/my/own")
    for _ in range(2):
        caches.keep_on_node()
        assert node.stat().st_mode & 0o777 == 0o700
    assert os.environ["TRITON_CACHE_DIR"] == str(node / "triton")
    assert os.environ["VLLM_CACHE_ROOT"] == "/my/own"


def open_to_all(path: Path) -> None:
    path.mkdir()
    path.chmod(0o777)


def link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(path.parent / "elsewhere")


def of_another_user(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root gives a folder to another user")
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("make", [open_to_all, link, of_another_user, Path.touch])
def test_a_folder_that_others_may_have_filled_is_not_used(node: Path, make: Callable[[Path], None]) -> None:
    make(node)
    caches.keep_on_node()
    assert "TRITON_CACHE_DIR" not in os.environ


def test_nothing_is_made_where_there_is_no_gpu(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    caches.keep_on_node()
    assert not node.exists()
