"""Any configuration ends in settings or in one clear error, in bounded time: trees made from the schema, and YAML text.

A new setting is tried here without a change of this file.
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.junk import SMALL, TEXTS, VALUES, no_files, refused
from tests.settings.test_config import FIELDS, MINIMAL
from xlr import configfile
from xlr.errors import UserError
from xlr.foreign import yamlfiles
from xlr.foreign.texts import control_in
from xlr.settings.config import Config
from xlr.settings.schema import Lines, Location, marks
from xlr.settings.slurmconfig import SlurmConfig

SCHEMA = Config.model_json_schema()
NEEDED = {"evaluate": {"prompts": {"path": "held"}}}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, or the one that it refers to."""
    found: dict[str, Any] = SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    return found


def branches(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The types that a schema allows, each with its limits."""
    return [resolved(one) for one in resolved(schema).get("anyOf", [schema])]


def entries(schema: dict[str, Any]) -> dict[str, Any] | None:
    """The schema of the values of a mapping with free keys."""
    inner = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
    return next((one for one in inner if isinstance(one, dict)), None)


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of the types of a schema, within and beyond its limits; parts of a section or list may be junk."""
    return st.one_of(*map(fitting, branches(schema)))


def part(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    return st.one_of(of_schema(schema), of_schema(schema), VALUES)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    kind, inner = schema.get("type"), entries(schema)
    if "properties" in schema:
        some = st.lists(st.sampled_from(list(schema["properties"])), max_size=3, unique=True)
        return some.flatmap(lambda keys: st.fixed_dictionaries({key: part(schema["properties"][key]) for key in keys}))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 1)
        return st.sampled_from([low, high, low - 1, high + 1, float(low), str(low)])
    if kind == "array":
        return st.lists(part(schema["items"]), max_size=2)
    if inner is not None:
        values = part(inner) if resolved(inner) else VALUES
        return st.dictionaries(st.sampled_from(["train", "a"]) | TEXTS, values, max_size=2)
    return {"boolean": st.booleans(), "null": st.none()}.get(str(kind), st.text(max_size=4) | TEXTS)


def numbers(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema of every number in a field, but for those of the sections in it."""
    for one in branches(schema):
        if one.get("type") in ("integer", "number"):
            yield one
        for inner in (one.get("items"), entries(one)):
            if inner and "properties" not in resolved(inner):
                yield from numbers(inner)


@pytest.mark.parametrize("dotted", FIELDS)
def test_every_number_has_a_lowest_and_a_highest_value(dotted: str) -> None:
    for one in numbers(property_of(dotted)):
        assert {"minimum", "exclusiveMinimum"} & one.keys(), "give it ge= or gt="
        assert {"maximum", "exclusiveMaximum"} & one.keys(), "give it le= or lt="


def nested(dotted: str, value: Any) -> dict[str, Any]:
    """A whole configuration with one value changed."""
    tree: Any = value
    for key in reversed(dotted.replace("NAME", "train").split(".")):
        tree = {key: tree}
    return configfile._merged(MINIMAL | NEEDED, tree)


def property_of(dotted: str) -> dict[str, Any]:
    """The schema of a setting."""
    schema = SCHEMA
    for key in dotted.split("."):
        tree = next(one for one in branches(schema) if "properties" in one or entries(one) is not None)
        schema = entries(tree) or {} if key == "NAME" else tree["properties"][key]
    return schema


def kinds(dotted: str) -> set[str]:
    """The JSON types of a setting; a text with fixed values counts as `enum`."""
    return {"enum" if {"enum", "const"} & one.keys() else one["type"] for one in branches(property_of(dotted))}


WRONG: dict[str, list[Any]] = {
    "boolean": [True, False],
    "integer": [1, 0],
    "number": [0.5, 1.5],
    "string": ["1", "0.5", "true", "yes"],
    "array": [["x"]],
    "object": [{"x": 1}],
    "null": [None],
}


@pytest.mark.parametrize("dotted", FIELDS)
def test_a_value_of_another_type_is_refused(dotted: str) -> None:
    accepted = kinds(dotted) | ({"integer"} if "number" in kinds(dotted) else set())
    values = [value for kind, wrong in WRONG.items() if kind not in accepted for value in wrong]
    for value in [*values, 10**400, float("nan"), float("inf"), b"x", {1}]:
        with pytest.raises((ValueError, UserError)):
            Config.model_validate(nested(dotted, value))


BAD_TEXTS = ["", " ", "\u200b", "a\0", "a\x1b[31m", "a\x7f", "a\x9b", "\ud800", "\u202ea", "a\u2028"]


@pytest.mark.parametrize("dotted", [dotted for dotted in FIELDS if "string" in kinds(dotted)])
def test_a_text_that_is_empty_or_has_control_characters_is_refused(dotted: str) -> None:
    lines = marks(FIELDS[dotted], Lines)
    for text in [*BAD_TEXTS[3:], *([] if lines else [*BAD_TEXTS[:3], "a\nb", "a\tb"])]:
        with pytest.raises((ValueError, UserError)):
            Config.model_validate(nested(dotted, text))
    if marks(FIELDS[dotted], Location):
        for text in ("a" * 256, "é" * 128, "a/" * 2100):
            with pytest.raises(ValueError, match="is too long; a path has at most 4096 bytes"):
                Config.model_validate(nested(dotted, text))


def test_lines_are_for_commands_and_requests_only() -> None:
    lined = {dotted for dotted, field in FIELDS.items() if marks(field, Lines)}
    assert lined == {"model.system_prompt", "slurm.setup", "judge.serve", "judge.extra_body"}
    setup = Config.model_validate(nested("slurm.setup", ["module load x\nmodule load y\n", ""])).slurm.setup
    assert setup == ("module load x\nmodule load y\n", "")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("junk") / "run.yaml"


def accepted_again(path: Path, overrides: list[str]) -> None:
    """What is accepted can be written, and is read back as the same settings."""
    config = configfile.load(path, overrides)
    copy = path.with_name("copy.yaml")
    copy.write_text(configfile.dump(config), encoding="utf-8")
    assert configfile.load(copy) == config


@SMALL
@given(tree=of_schema(SCHEMA))
def test_any_tree_is_settings_or_refused(path: Path, tree: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(MINIMAL | NEEDED | tree), encoding="utf-8")
    if refused(lambda: configfile.load(path), str(path)) is None:
        accepted_again(path, [])


@SMALL
@given(st.sampled_from(list(FIELDS)).flatmap(lambda key: st.tuples(st.just(key), of_schema(property_of(key)) | VALUES)))
def test_any_override_is_settings_or_refused(path: Path, given_: tuple[str, Any]) -> None:
    path.write_text(yaml.safe_dump(MINIMAL | NEEDED), encoding="utf-8")
    dotted, value = given_
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n")
    override = f"{dotted.replace('NAME', 'train')}={text}"
    if refused(lambda: configfile.load(path, [override]), "") is None:
        accepted_again(path, [override])


YAML_PARTS = [
    "{",
    "}",
    "[",
    "]",
    "- ",
    ": ",
    "\n",
    "  ",
    "&a ",
    "*a",
    "<<: ",
    "!!x ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "%",
    "@",
    "\t",
]
YAML_TEXTS = st.lists(
    st.sampled_from([*YAML_PARTS, "a", "seed", "train", "1", "\0", "\x85", "---\n", "..."]) | st.text(max_size=2)
)


@SMALL
@given(YAML_TEXTS.map("".join))
def test_any_yaml_text_is_settings_or_refused(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    refused(lambda: configfile.load(path), str(path))
    refused(lambda: configfile.load_section(path, SlurmConfig), str(path))
    refused(lambda: yamlfiles.parse(text, path), str(path))


LIKE_NUMBERS = st.sampled_from(["1e5", "1e-5", "2024-01-01", "=", "010", "1:30", "yes", "1_0", ".5"])
PLAIN = (st.text(max_size=8) | TEXTS | LIKE_NUMBERS).filter(lambda text: control_in(text, lines=True) is None)


@SMALL
@given(st.recursive(PLAIN | st.integers(-9, 9) | st.floats(allow_nan=False), st.lists, max_leaves=5))
def test_what_is_dumped_is_read_back(value: Any) -> None:
    assert yamlfiles.parse(yamlfiles.dump({"a": value}), "text") == {"a": value}


def bomb(levels: int) -> str:
    rows = [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]" for level in range(1, levels)]
    return "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "\n".join(rows)


def merge_bomb(levels: int) -> str:
    rows = [f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * 9)}]}}" for level in range(1, levels)]
    return "m0: &m0 {x: 1}\n" + "\n".join(rows)


CHAIN = "a0: &a0 [x]\n" + "\n".join(f"a{level}: &a{level} [*a{level - 1}]" for level in range(1, 3000))

BAD_YAML: dict[str, tuple[str, str]] = {
    "alias bomb": (bomb(30), r":5: has more than 10,000 entries, with aliases expanded; remove some"),
    "merge bomb": (merge_bomb(30), r":5: has more than 10,000 entries, with aliases expanded"),
    "alias of itself": ("a: &a [*a]", r":1: contains itself through an alias; remove the alias"),
    "chain of aliases": (CHAIN, r" is nested more than 40 levels deep; remove levels"),
    "deep flow": ("a: " + "[" * 100_000, r":1: is nested more than 40 levels deep"),
    "deep sections": ("a: " + "{a: " * 100_000, r":1: is nested more than 40 levels deep"),
    "deep blocks": ("- " * 100_000, r":1: is nested more than 40 levels deep"),
    "many entries": ("a:\n" + "- x\n" * 100_000, r":\d+: has more than 10,000 entries"),
    "large file": ("# " + "x" * (1 << 20) + "\nseed: 1", r" is larger than 1 MiB; make it smaller"),
    "long comment": ("# " + "x" * 900_000, r" contains no settings"),
    "long text": ("seed: " + "x" * 900_000, r' seed: input should be a valid integer \(it is "xxx'),
    "long key": ("? " + "x" * 900_000 + "\n: 1", r" x+…: unknown key"),
    "long integer": ("seed: " + "9" * 5000, r":1: a number has 5000 characters; write a shorter one"),
    "long hexadecimal": ("seed: 0x" + "f" * 5000, r":1: a number has 5002 characters"),
    "seed of 25 digits": (
        "seed: " + "9" * 25,
        r" seed: input should be less than or equal to 4294967295 \(it is 9999",
    ),
    "no number": ("seed: 0x_", r':1: "0x_" is not a number; put the text in quotes'),
    "NUL": ("seed: 1\nrun_dir: a\0b", r":2: contains the control character .u0000; remove it"),
    "escaped NUL": ('run_dir: "a\\0b"', r" run_dir: contains the control character .u0000; remove it"),
    "escaped surrogate": ('run_dir: "\\ud800"', r" run_dir: contains the control character .ud800; remove it"),
    "escape beyond Unicode": ('seed: 1\nrun_dir: "\\UFFFFFFFF"', r":2: not valid YAML \(.*\); correct the line"),
    "not UTF-8": ("seed: 1\nrun_dir: \udcff", r":2: not UTF-8 \(invalid start byte\); save the file as UTF-8"),
    "Python object": ("seed: 1\na: !!python/object/apply:os.system [x]", r":2: the tag .*os.system. is not supported"),
    "local tag": ("a: !x 1", r':1: the tag "!x" is not supported; remove it, or quote the text'),
    "standard tag": ("a: !!int '1'", r":1: the tag .* is not supported"),
    "number as key": ("1: 2", r":1: YAML reads the key 1 as a value of type int; put it in quotes"),
    "boolean as key": ("slurm:\n  jobs:\n    no: {}", r":3: YAML reads the key no as a value of type bool"),
    "null as key": ("~: 2", r":1: YAML reads the key ~ as a value of type null"),
    "list as key": ("? [a]\n: 1", r":1: a key is a list or a section; write a text"),
    "equal keys": ("seed: 1\nseed: 2", r":2: seed: duplicate key; remove one of them"),
    "equal keys below": ("judge:\n  extra_body:\n    a: {b: 1, b: 1}", r":3: b: duplicate key"),
    "equal keys in a base": ("extends: base.yaml", r"base\.yaml:2: seed: duplicate key"),
    "two documents": ("seed: 1\n---\nseed: 2", r":2: not valid YAML \(.*document.*\); correct the line"),
    "undefined alias": ("a: *b", r":1: not valid YAML \(found undefined alias 'b'\)"),
    "tab": ("a:\n\tb: 1", r":2: not valid YAML \(found character.*\); correct the line"),
    "open bracket": ("a: [1,\n", r":2: not valid YAML"),
    "only text": ("hello", r" contains no settings; start from `xlr init"),
    "boolean as limit": ("prompts: {limit: true}", r" prompts\.limit: input should be a valid integer \(it is true\)"),
    "yes as number": ("iterations: yes", r" iterations: input should be a valid integer \(it is true\)"),
    "no as language": ("languages: [no]", r" languages\.0: input should be a valid string, in quotes \(it is false\)"),
    "text as number": ('train: {beta: "0.1"}', r' train\.beta: input should be a valid number \(it is "0\.1"\)'),
    "number as text": ("slurm: {time: 1:30}", r" slurm\.time: input should be a valid string, in quotes \(it is 90\)"),
    "one text as list": (
        "languages: en",
        r" languages: input should be a list, for example \[a, b\] \(it is \"en\"\)",
    ),
    "value as section": ("train: 3", r" train: input should be a section of keys and values \(it is 3\)"),
    "empty run_dir": ('run_dir: ""', r" run_dir: is empty; fill it in, or remove the key"),
    "line break": ('slurm: {partition: "a\\nb"}', r" slurm\.partition: contains a line break; write it on one line"),
    "tiny temperature": (
        "generate: {temperature: 1e-300}",
        r" generate\.temperature: .* equal to 0\.01 \(it is 1e-300\)",
    ),
    "many samples": ("generate: {num_samples: 1000000000000}", r" generate\.num_samples: .* equal to 10000 \(it is"),
    "not a number": ("train: {beta: .nan}", r" train\.beta: input should be a finite number \(it is NaN\)"),
    "two types": (
        "slurm: {gpus: true}",
        r" slurm\.gpus: .*valid integer, or .*valid string, in quotes \(it is true\)",
    ),
    "several problems": ("train: {beta: -1}\nsed: 1", r" train\.beta: .*; sed: unknown key; did you mean seed\?"),
    "very many problems": ("\n".join(f"k{i}: 1" for i in range(500)), r"; and 49\d more"),
    "password in URL": (
        "judge: {base_url: 'http://u:secret@h/v1'}",
        r" judge\.base_url: holds more than an address",
    ),
    "no URL": ("judge: {base_url: nonsense}", r" judge\.base_url: not an address; set it to http"),
    "open quote": (
        'judge: {serve: "a {port} \'"}',
        r" judge\.serve: is not a command \(No closing quotation\); close",
    ),
    "object in request": ("judge: {extra_body: {a: .inf}}", r" judge\.extra_body\.a: input should be a finite number"),
    "extends itself": ("extends: run.yaml", r" extends: the files extend each other in a circle"),
    "extends a list": ("extends: [a]", r' extends: \["a"\] is neither a recipe'),
    "extends a folder": ("extends: .", r" is a folder; name a regular file"),
    "extends an unknown home": ("extends: ~nobody-here/x.yaml", r" extends: .*home directory.*; write the whole path"),
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_bad_yaml_is_refused_with_its_place_and_a_remedy(case: str, path: Path) -> None:
    text, message = BAD_YAML[case]
    path.with_name("base.yaml").write_text("seed: 1\nseed: 2\n")
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    begun = time.monotonic()
    with pytest.raises(UserError, match=message) as refused_:
        configfile.load(path)
    assert time.monotonic() - begun < 5
    assert str(refused_.value).startswith(str(path.parent))
    assert "secret" not in str(refused_.value)


@pytest.mark.parametrize("load", [configfile.load, partial(configfile.load_section, section=SlurmConfig)])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    for words, path in no_files(tmp_path, "yaml").items():
        if path.name == "folder.yaml" and load is configfile.load:
            continue  # a run directory
        with pytest.raises(UserError, match=f"{words}|no such configuration file"):
            load(path)


def test_a_chain_of_many_files_is_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"extends: {number + 1}.yaml\n")
    with pytest.raises(UserError, match=r"19\.yaml: extends: more than 20 files extend each other; merge some"):
        configfile.load(tmp_path / "0.yaml")
