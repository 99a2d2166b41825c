"""Configuration files: YAML and overrides become a `Config` with absolute paths. Errors name the file and the key.

A relative path is relative to the folder that the command runs in. In a path, `{recipes}` is the folder of the files
that ship with xlr, `~` the home folder, and `$NAME` or `${NAME}` an environment variable.
"""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import ValidationError

from xlr.errors import UserError
from xlr.foreign import yamlfiles
from xlr.foreign.hub import is_dataset_name
from xlr.foreign.texts import brief, cut, reason
from xlr.settings.config import Config
from xlr.settings.schema import Location, Section, marks
from xlr.shipped import RECIPES, recipes

# The key under which a file names another one, whose settings it takes over except for those it sets itself.
EXTENDS = "extends"
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})", re.ASCII)
_WHOLE = ("score.reward", "pair.keep")  # mappings that are one value: a file that extends another replaces them
_MOST_EXTENDED = 20  # files in a chain
_DEEPEST_KEY = 20  # parts of a dotted key
_LONGEST_KEY = 100  # characters of a key that are compared with the valid ones
_ABSENT = object()
_MOST_PROBLEMS = 5  # that one message names

# Pydantic's words, where they speak of Python rather than of YAML, and where a remedy is known.
_WORDS = {
    "missing": "not set; add it",
    "model_type": "input should be a section of keys and values",
    "dict_type": "input should be a section of keys and values",
    "tuple_type": "input should be a list, for example [a, b]",
    "string_type": "input should be a valid string, in quotes",
    "bool_type": "input should be true or false",
    "invalid-json-value": "input should be a text, a number, true, false, null, a list or a section",
}

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
    if os.path.isdir(path):
        path = path / "config.yaml"
    if not os.path.lexists(path):
        what = "no such configuration file or run directory"
        raise UserError(f"{path}: {what}; start one with `xlr init NAME --recipe quickstart`")
    tree, files = _read(path)
    for override in overrides or []:
        tree = _overridden(tree, override)
    config = _validated(Config, {"run_dir": f"runs/{path.stem}"} | tree, files)
    absolute: Config = _absolute(config, config, str(path))
    return absolute


def load_here(source: str | Path, overrides: list[str] | None = None) -> Config:
    """Like `load`, but the path of a run directory decides: the file in a copied or moved one names the original.

    Raises:
        UserError: as `load`.
    """
    here = [f"run_dir={json.dumps(str(Path(source).absolute()))}"] if os.path.isdir(source) else []
    return load(source, [*here, *(overrides or [])])


def load_section(path: Path, section: type[AnySection]) -> AnySection:
    """Read a file that is no run's configuration: a site profile or a sweep.

    Raises:
        UserError: naming the file and the key.
    """
    return _validated(section, *_read(path))


def dump(config: Config) -> str:
    """The configuration as YAML, with every default."""
    return yamlfiles.dump(config.model_dump(mode="json"))


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
    base = base_file(name, path, EXTENDS)
    if base.resolve() in {file.resolve() for file in files}:
        chain = " -> ".join(map(str, (*files, base)))
        raise UserError(f"{path}: extends: the files extend each other in a circle ({chain}); remove one `extends`")
    if len(files) == _MOST_EXTENDED:
        raise UserError(f"{path}: extends: more than {_MOST_EXTENDED} files extend each other; merge some of them")
    inherited, files = _read(base, files)
    inherited.pop("run_dir", None)  # two files that extend one must not share a run directory by mistake
    return _merged(inherited, own), files


def _parse(path: Path) -> dict[str, Any]:
    tree = yamlfiles.load(path)
    if not isinstance(tree, dict):
        raise UserError(f"{path}: contains no settings; start from `xlr init NAME --recipe quickstart`")
    return tree


def base_file(name: Any, path: Path, key: str) -> Path:
    """The file that another one starts from: a recipe, or a file relative to it.

    Args:
        name: what the other file names.
        path: the other file.
        key: the key in it.

    Raises:
        UserError: there is none.
    """
    if name in recipes():
        return RECIPES / f"{name}.yaml"
    base = path.parent / expanded(str(name), f"{path}: {key}")
    if not os.path.lexists(base):
        raise UserError(
            f"{path}: {key}: {brief(name)} is neither a recipe ({', '.join(recipes())}) nor a file "
            f"relative to this one ({base}); name one of these"
        )
    return base


def _merged(inherited: dict[str, Any], own: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Two layers of settings merged, sections key by key; `own` wins."""
    both = {
        key: _merged(inherited[key], value, f"{prefix}{key}.")
        for key, value in own.items()
        if isinstance(value, dict) and isinstance(inherited.get(key), dict) and f"{prefix}{key}" not in _WHOLE
    }
    return inherited | own | both


def _overridden(tree: dict[str, Any], override: str) -> dict[str, Any]:
    """The settings with one value replaced.

    Raises:
        UserError: the override is not written section.key=value.
    """
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals:
        raise UserError(f"{brief(override)}: an override is written section.key=value, for example train.beta=0.2")
    if keys == [EXTENDS]:
        raise UserError(f"{brief(override)}: only a file can extend another; write it into the file")
    if len(keys) > _DEEPEST_KEY:
        raise UserError(f"{brief(override)}: unknown key; a key has at most {_DEEPEST_KEY} parts")
    return _replaced(tree, keys, yamlfiles.parse(text, f"override {brief(override)}"), override)


def _replaced(tree: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    key, *below = keys
    if not below:
        return tree | {key: value}
    section = {} if tree.get(key) is None else tree[key]
    if not isinstance(section, dict):
        raise UserError(f"{brief(override)}: {brief(key)} is a value, not a section")
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
        raise UserError(f"{named}: {_explain(error.errors(include_url=False), tree, section)}") from error
    except UserError as error:
        raise UserError(f"{named}: {error}") from error


def _explain(problems: list[Any], tree: dict[str, Any], root: type[Section]) -> str:
    """The problems that pydantic found, by key: what a key with several types is not is one problem."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for problem in problems:
        if problem["type"] != "default_factory_not_called":  # follows from another problem
            found.setdefault(_keys(problem, tree), []).append(problem)
    # Of a section that could also be a text, what is wrong inside it is the problem.
    sections = {keys[:length] for keys in found for length in range(len(keys))}
    sentences = [_sentence(keys, own, root) for keys, own in found.items() if keys not in sections]
    more = f"; and {len(sentences) - _MOST_PROBLEMS} more" if len(sentences) > _MOST_PROBLEMS else ""
    return "; ".join(sentences[:_MOST_PROBLEMS]) + more


def _keys(problem: Any, tree: Any) -> tuple[Any, ...]:
    """The keys of a problem, without the names of types that pydantic adds to them."""
    keys: list[Any] = []
    for part in problem["loc"]:
        inside = tree.get(part, _ABSENT) if isinstance(tree, dict) else _ABSENT
        if isinstance(tree, list) and isinstance(part, int):
            inside = tree[part]
        if inside is not _ABSENT:
            keys, tree = [*keys, part], inside
    return (*keys, problem["loc"][-1]) if problem["type"] == "missing" else tuple(keys)


def _sentence(keys: tuple[Any, ...], problems: list[Any], root: type[Section]) -> str:
    """The problems of one key; an unknown key comes with the closest valid one."""
    dotted = ".".join(map(str, keys)) or "the file"
    if problems[0]["type"] == "extra_forbidden":
        return f"{cut(dotted)}: {_unknown(keys, root)}"
    said = dict.fromkeys(_WORDS.get(one["type"], f"{one['msg'][0].lower()}{one['msg'][1:]}") for one in problems)
    given = "" if problems[0]["type"] == "missing" else f" (it is {brief(problems[0]['input'])})"
    return f"{cut(dotted)}: {', or '.join(said)}{given}"


def _unknown(keys: tuple[Any, ...], root: type[Section]) -> str:
    section = root
    for key in keys[:-1]:  # some of them are names, such as train in slurm.jobs.train
        if key in section.model_fields:
            section = _section_in(section.model_fields[key].annotation) or section
    valid = [*section.model_fields, *([EXTENDS] if section is root else [])]
    close = difflib.get_close_matches(str(keys[-1])[:_LONGEST_KEY], valid, 1)
    nearest = f"did you mean {close[0]}? " if close else ""
    return f"unknown key; {nearest}valid here: {', '.join(valid)}"


def _section_in(annotation: Any) -> type[Section] | None:
    """The section class in a type, also in that of a list's elements."""
    if isinstance(annotation, type(Section)):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _absolute(value: Any, config: Config, position: str, location: Location | None = None) -> Any:
    """A copy of a section or value in which every path is absolute, so that the configuration works from any folder.

    Args:
        position: the file, for error messages.
    """
    if isinstance(value, Section):
        fields = type(value).model_fields
        own = {key: next(iter(marks(field, Location)), None) for key, field in fields.items()}
        found = {key: _absolute(getattr(value, key), config, position, own[key]) for key in fields}
        return value.model_copy(update=found)
    if isinstance(value, dict):
        return {name: _absolute(entry, config, position, location) for name, entry in value.items()}
    if isinstance(value, tuple) and location:
        return tuple(_absolute(entry, config, position, location) for entry in value)
    return _located(value, location, config, position) if location and isinstance(value, str) else value


def _located(value: str, location: Location, config: Config, position: str) -> str:
    """The value as an absolute path, or as it is where it is a name."""
    if not _is_path(value, location, config):
        return value
    try:
        return str(expanded(value.replace("{recipes}", str(RECIPES)), position).absolute())
    except OSError as error:  # of the folder that the command runs in
        raise UserError(f"{position}: {brief(value)}: {reason(error)}; go to a folder that exists") from error


def expanded(value: str, position: str) -> Path:
    """The path with `~` and variables replaced.

    Raises:
        UserError: the home folder is not known, or a variable is not set.
    """

    def variable(found: "re.Match[str]") -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise UserError(f"{position}: {brief(value)}: the variable {name} is not set; set it, or write the path")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(variable, value)).expanduser()
    except RuntimeError as error:
        raise UserError(f"{position}: {brief(value)}: {reason(error)}; write the whole path") from error


def _is_path(value: str, location: Location, config: Config) -> bool:
    if location is Location.DS_CONFIG:
        return value.endswith(".json")
    if location is Location.BASELINE:
        return config.baseline_model is None
    if location is Location.JUDGE and config.judge.backend != "transformers":
        return False
    if location is Location.DATA:
        return not is_dataset_name(value)
    if location in (Location.HUB, Location.JUDGE):
        return value.startswith((".", "/", "~", "{", "$")) or os.path.lexists(value)
    return True
