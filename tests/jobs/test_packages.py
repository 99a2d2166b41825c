"""The doctor names packages that the settings need and a node lacks."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xlr.configfile import load
from xlr.jobs.doctor import packages


def test_a_missing_package_is_named_with_its_extra(
    tiny_tree: dict[str, Any], write_config: Callable[[dict[str, Any]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load(str(write_config(tiny_tree)), ["generate.backend=vllm", "model.fused_operations=true"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else object())
    (missing,) = packages(config, "node1")
    assert missing.check == "node1: vllm"
    assert '`pip install ".[vllm]"`' in missing.remedy
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert [check.check for check in packages(config, "node1")] == ["node1: vllm", "node1: liger_kernel"]
    assert not list(packages(load(str(write_config(tiny_tree)), []), "node1"))
