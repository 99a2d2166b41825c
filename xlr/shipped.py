"""Files that ship with xlr: recipes inside the package; ds_configs, ray_jobs and slurm beside it."""

from pathlib import Path

from xlr.errors import UserError

_PACKAGE = Path(__file__).parent

RECIPES = _PACKAGE / "recipes"


def recipes() -> list[str]:
    """The names of the shipped configurations."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def shipped(folder: str, name: str) -> Path:
    """A shipped file: inside an installed package, or beside it in a checkout.

    Raises:
        UserError: there is none of that name; it lists those there are.
    """
    places = [_PACKAGE / folder, _PACKAGE.parent / folder]
    for place in places:
        if (place / name).is_file():
            return place / name
    there = sorted({file.stem for place in places for file in place.glob("*") if file.is_file()} - {"__init__"})
    raise UserError(f"{folder}: has no {Path(name).stem!r}; shipped are {', '.join(there)}, or name a file")
