"""Datasets of the hub in a local cache, as on a node without network."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml
from huggingface_hub import constants

COMMIT = "1" * 40
HubCache = Callable[..., None]


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubCache:
    """Put a dataset into a new cache: its rows by subset and split, at a commit that becomes the newest."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")

    def put(name: str, parts: Mapping[tuple[str, str], list[dict[str, Any]]], commit: str = COMMIT) -> None:
        repository = tmp_path / "hub" / f"datasets--{name.replace('/', '--')}"
        folder = repository / "snapshots" / commit
        configs: dict[str, list[dict[str, str]]] = {}
        for (subset, split), rows in parts.items():
            file = folder / subset / f"{split}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            configs.setdefault(subset, []).append({"split": split, "path": f"{subset}/{split}.jsonl"})
        card = {"configs": [{"config_name": subset, "data_files": files} for subset, files in configs.items()]}
        (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card)}---\n")
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(commit)

    return put
