"""A sweep over tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import tiny_tree

Write = Callable[..., Path]


@pytest.fixture
def write_sweep(tiny_models: dict[str, Path], tmp_path: Path) -> Write:
    """Write a base and the file of a sweep, which becomes `runs` in the same folder."""

    def write(**sweep: Any) -> Path:
        if not (tmp_path / "base.yaml").exists():
            tree = tiny_tree.__wrapped__(tiny_models, tmp_path)  # type: ignore[attr-defined]
            del tree["run_dir"]
            (tmp_path / "base.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
        own = {"base": "base.yaml", "sweep_dir": str(tmp_path / "runs")} | sweep
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(own, sort_keys=False), encoding="utf-8")
        return path

    return write
