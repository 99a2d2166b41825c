"""The locked packages: exact versions with digests, what setup.py asks for, and no address of a package index."""

import re
import runpy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCKS = sorted(path for path in (ROOT / "requirements").iterdir() if path.is_dir())
LINE = re.compile(r"([a-z0-9.-]+)==([^ ]+) --hash=sha256:[0-9a-f]{64}")


@cache
def asked() -> list[Requirement]:
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", found.update)
        runpy.run_path(str(ROOT / "setup.py"))
    extras = [text for name in ("quickstart", "test", "docs") for text in found["extras_require"][name]]
    return [Requirement(text) for text in [*found["install_requires"], *extras]]


def locked(folder: Path) -> dict[str, str]:
    lines = [line for file in folder.iterdir() for line in file.read_text(encoding="utf-8").splitlines()]
    matches = [LINE.fullmatch(line) for line in lines if line != "# Written by `make lock`."]
    assert all(matches), "only packages with version and digest; no options"
    return {match[1]: match[2] for match in matches if match}


@pytest.mark.parametrize("folder", LOCKS, ids=lambda folder: folder.name)
def test_a_lock_holds_what_setup_asks_for(folder: Path) -> None:
    versions = locked(folder)
    for requirement in asked():
        name = requirement.name.lower().replace("_", "-")
        assert requirement.specifier.contains(versions[name]), f"{requirement}: run `make lock`"


def test_ci_uses_a_lock_that_exists() -> None:
    names = re.findall(r"requirements/([\w-]+)", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert set(names) == {folder.name for folder in LOCKS}
