"""Configuration files: YAML and overrides become a `Config` with absolute paths. Errors name the file and the key.

A relative path is relative to the folder that the command runs in. In a path, `{recipes}` is the folder of the files
that ship with xlr, and `~` the home folder.
"""

import difflib
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from xlr.config import Config
from xlr.errors import UserError
from xlr.schema import Location, Section, marks, section_type
from xlr.shipped import RECIPES, recipes
from xlr.slurmconfig import SlurmConfig

# The key under which a file names another one, whose settings it takes over except for those it sets itself.
EXTENDS = "extends"

_EXTENDS_SCHEMA = {
    "type": "string",
    "description": "Configuration to start from: the name of a shipped recipe, or a file relative to this one. "
    "Sections are merged key by key; where both set a value or a list, this file wins.",
}

AnySection = TypeVar("AnySection", bound=Section)


def load(source: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a configuration.

    Args:
        source: a YAML file, or a run directory (its `config.yaml`).
        overrides: `section.key=value` strings, values in YAML.

    Raises:
        UserError: naming the file and the key.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "config.yaml"
    if not path.is_file():
        what = "no such configuration file or run directory"
        raise UserError(f"{path}: {what}; start one with `xlr init NAME --recipe quickstart`")
    tree, files = _read(path)
    for override in overrides or []:
        tree = _overridden(tree, override)
    config = _validated(Config, {"run_dir": f"runs/{path.stem}"} | tree, files)
    absolute: Config = _absolute(config, config)
    return absolute


def load_site(path: Path) -> SlurmConfig:
    """Read a site profile.

    Raises:
        UserError: naming the file and the key.
    """
    return _validated(SlurmConfig, *_read(path))


def dump(config: Config) -> str:
    """The configuration as YAML, with every default."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration file. It requires no key: the file that is extended may set it."""
    tree = Config.model_json_schema()
    for section in (tree, *tree["$defs"].values()):
        section.pop("required", None)
    return tree | {"properties": {EXTENDS: _EXTENDS_SCHEMA} | tree["properties"]}


def _read(path: Path, extending: tuple[Path, ...] = ()) -> tuple[dict[str, Any], tuple[Path, ...]]:
    """The settings of a file merged over those of the file it extends (but for run_dir), and all files that were read.

    Args:
        extending: the files that led to this one.

    Raises:
        UserError: a file is missing or not readable, or a file extends itself.
    """
    files = (*extending, path)
    own = _parse(path)
    name = own.pop(EXTENDS, None)
    if name is None:
        return own, files
    base = _extended_file(name, path)
    if base.resolve() in {file.resolve() for file in files}:
        chain = " -> ".join(map(str, (*files, base)))
        raise UserError(f"{path}: extends: the files extend each other in a circle ({chain}); remove one `extends`")
    inherited, files = _read(base, files)
    inherited.pop("run_dir", None)  # two files that extend one must not share a run directory by mistake
    return _merged(inherited, own), files


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: contains no settings; start from `xlr init NAME --recipe quickstart`")
    _require_unique_keys(root, path)
    return tree


def _require_unique_keys(root: yaml.Node | None, path: Path) -> None:
    """Check that no section sets a key twice, of which YAML would keep the last in silence.

    Raises:
        UserError: naming the line.
    """
    pending: list[yaml.Node | None] = [root]
    visited: set[int] = set()
    while pending:
        node = pending.pop()
        if id(node) in visited:  # reached again through an alias
            continue
        visited.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys: set[Any] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in keys:
                    raise UserError(f"{path}:{key.start_mark.line + 1}: {key.value}: duplicate key; remove one of them")
                keys.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
                pending.append(value)
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def _extended_file(name: Any, path: Path) -> Path:
    """The file that `extends: name` means in the file `path`.

    Raises:
        UserError: there is none.
    """
    if name in recipes():
        return RECIPES / f"{name}.yaml"
    base = path.parent / Path(str(name)).expanduser()
    if not base.is_file():
        raise UserError(
            f"{path}: extends: {name!r} is neither a recipe ({', '.join(recipes())}) nor a file relative to this one "
            f"({base})"
        )
    return base


def _merged(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Two layers of settings merged, sections key by key; `own` wins."""
    both = {
        key: _merged(inherited[key], value)
        for key, value in own.items()
        if isinstance(value, dict) and isinstance(inherited.get(key), dict)
    }
    return inherited | own | both


def _overridden(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """The settings with one value replaced.

    Raises:
        UserError: the override is not written section.key=value.
    """
    dotted, equals, text = override.partition("=")
    if not equals:
        raise UserError(f"{override!r}: an override is written section.key=value, for example train.beta=0.2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{override!r}: the value is not valid YAML") from error
    return _replaced(tree, dotted.split("."), value, override)


def _replaced(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    key, *below = keys
    if not below:
        return tree | {key: value}
    section = {} if tree.get(key) is None else tree[key]
    if not isinstance(section, dict):
        raise UserError(f"{override!r}: {key} is a value, not a section")
    return tree | {key: _replaced(section, below, value, override)}


def _validated(section: type[AnySection], tree: dict[str, Any], files: tuple[Path, ...]) -> AnySection:
    """The settings as a typed section.

    Raises:
        UserError: naming the files that the settings come from, and every wrong key.
    """
    named = str(files[0]) + (f" (extends {', '.join(map(str, files[1:]))})" if files[1:] else "")
    try:
        return section.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{named}: " + "; ".join(_explain(problem, section) for problem in error.errors())) from error
    except UserError as error:
        raise UserError(f"{named}: {error}") from error


def _explain(problem: Any, root: type[Section]) -> str:
    """One problem found by pydantic, with its dotted key and, for an unknown key, the closest valid one."""
    keys = [str(part) for part in problem["loc"]]
    dotted = ".".join(keys)
    if problem["type"] != "extra_forbidden":
        given = "" if problem["type"] == "missing" else f" (it is {problem['input']!r})"
        return f"{dotted or 'the file'}: {problem['msg'][0].lower()}{problem['msg'][1:]}{given}"
    section = root
    for key in keys[:-1]:  # some of them are names, such as train in slurm.jobs.train
        if key in section.model_fields:
            section = section_type(section.model_fields[key].annotation) or section
    valid = [*section.model_fields, *([EXTENDS] if section is root else [])]
    close = difflib.get_close_matches(keys[-1], valid, 1)
    nearest = f"did you mean {close[0]}? " if close else ""
    return f"{dotted}: unknown key; {nearest}valid here: {', '.join(valid)}"


def _absolute(value: Any, config: Config, location: Location | None = None) -> Any:
    """A copy of a section or value in which every path is absolute, so that the configuration works from any folder."""
    if isinstance(value, Section):
        fields = type(value).model_fields
        own = {key: next(iter(marks(field, Location)), None) for key, field in fields.items()}
        return value.model_copy(update={key: _absolute(getattr(value, key), config, own[key]) for key in fields})
    if isinstance(value, dict):
        return {name: _absolute(entry, config, location) for name, entry in value.items()}
    return _located(value, location, config) if location and isinstance(value, str) else value


def _located(value: str, location: Location, config: Config) -> str:
    """The value as an absolute path, or as it is where it is a name."""
    if not value or not _is_path(value, location, config):
        return value
    return str(Path(value.replace("{recipes}", str(RECIPES))).expanduser().absolute())


def _is_path(value: str, location: Location, config: Config) -> bool:
    if location is Location.DS_CONFIG:
        return value.endswith(".json")
    if location is Location.BASELINE:
        return config.baseline_model is None
    if location is Location.JUDGE and config.judge.backend != "transformers":
        return False
    if location in (Location.HUB, Location.JUDGE):
        return value.startswith((".", "/", "~", "{")) or Path(value).exists()
    return True
