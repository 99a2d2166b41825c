"""Finds the files that ship with xlr: recipes, DeepSpeed configurations, job scripts."""

from itertools import takewhile
from pathlib import Path

from xlr.errors import UserError

_PACKAGE = Path(__file__).parent

RECIPES = _PACKAGE / "recipes"
SWEEPS = ("paper-ablations",)  # of the recipes


def recipes() -> list[str]:
    """Names of the shipped recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def purpose(recipe: str) -> str:
    """What a recipe is for: the first sentence of the comment at its top."""
    lines = (RECIPES / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    comment = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines))
    return comment.split(". ")[0].rstrip(".")


def shipped(folder: str, name: str) -> Path:
    """The path of a shipped file. Its folder is inside an installed package, or beside the package in a checkout.

    Raises:
        UserError: there is no such file; lists the existing ones.
    """
    folders = [_PACKAGE / folder, _PACKAGE.parent / folder]
    for candidate in folders:
        if (candidate / name).is_file():
            return candidate / name
    files = (file for candidate in folders for file in candidate.glob("*") if file.is_file())
    names = ", ".join(sorted({file.stem for file in files} - {"__init__"}))
    raise UserError(f"{folder}: there is no {Path(name).stem!r}; choose one of {names}, or give the path of a file")
