"""Reads and writes YAML, within limits: any file ends in bounded time and memory, in settings or in one error."""

import re
from pathlib import Path
from typing import Any

import yaml

from xlr.errors import UserError
from xlr.foreign.texts import MIB, brief, read

_MOST_BYTES = MIB
_MOST_NODES = 10_000  # with aliases expanded
_DEEPEST = 40
_LONGEST_NUMBER = 40  # in characters

_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_KEYS = (f"{_TAG}str", f"{_TAG}merge")

# Types of plain scalars: those of PyYAML, but for dates and `=`, which are text here.
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (f"{_TAG}timestamp", f"{_TAG}value")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Loader(yaml.SafeLoader):
    """Refuses tags and what is too deep or too much while it reads, before it uses time or memory."""

    yaml_implicit_resolvers = _RESOLVERS

    def __init__(self, text: str, source: Path | str) -> None:
        super().__init__(text)
        self.source = source
        self._depth = self._nodes = 0

    def position(self, line: int) -> str:
        return f"{self.source}:{line + 1}" if isinstance(self.source, Path) else self.source

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self._depth, self._nodes = self._depth + 1, self._nodes + 1
        position = self.position(event.start_mark.line)
        if getattr(event, "tag", None) is not None:
            raise UserError(f"{position}: the tag {brief(event.tag)} is not supported; remove it, or quote the text")
        _require_small(self._depth, self._nodes, position)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what `_Loader` would read as another type."""

    yaml_implicit_resolvers = _RESOLVERS


# YAML 1.2 reads 1e-5 as a number; PyYAML wants 1.0e-5. The dumper shares the table.
_EXPONENT = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver(f"{_TAG}float", _EXPONENT, list("-+.0123456789"))


def load(path: Path) -> Any:
    """The content of a YAML file; see `parse`.

    Raises:
        UserError: naming the file and the line.
    """
    return parse(read(path, _MOST_BYTES), path)


def parse(text: str, source: Path | str) -> Any:
    """The content of a YAML text, in which all keys are texts.

    Args:
        source: the file, to which messages add the line, or a name for other texts.

    Raises:
        UserError: the text is no YAML; it has tags, duplicate keys, or keys that are not text; or it is too large.
    """
    loader: _Loader | None = None
    try:
        loader = _Loader(text, source)
        root = loader.get_single_node()
        if root is None:
            return None
        _Check(loader).size(root)
        return loader.construct_document(root)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        position = f"{source}:{line}" if isinstance(source, Path) else source
        code = f"\\u{int(error.character):04x}"
        raise UserError(f"{position}: contains the control character {code}; remove it") from error
    except yaml.MarkedYAMLError as error:
        assert loader is not None
        mark = error.problem_mark or error.context_mark
        what = " ".join(str(error.problem or error.context).split())
        raise UserError(
            f"{loader.position(mark.line if mark else 0)}: not valid YAML ({what}); correct the line"
        ) from error
    except (ValueError, OverflowError) as error:  # an escape beyond the last character of Unicode
        assert loader is not None
        raise UserError(f"{loader.position(loader.line)}: not valid YAML ({error}); correct the line") from error


def dump(tree: Any) -> str:
    """A tree as YAML that `parse` reads back."""
    text: str = yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Check:
    """Checks of a whole document, which its aliases may make far larger than its text."""

    def __init__(self, loader: _Loader) -> None:
        self._loader = loader
        # Size and depth by id of the node; None while the node is being measured.
        self._known: dict[int, tuple[int, int] | None] = {}

    def size(self, node: yaml.Node) -> tuple[int, int]:
        """Number of nodes and depth, with aliases expanded."""
        position = self._loader.position(node.start_mark.line)
        if id(node) not in self._known:
            self._known[id(node)] = None
            sizes = [self.size(child) for child in self._children(node)]
            size, depth = 1 + sum(size for size, _ in sizes), 1 + max((depth for _, depth in sizes), default=0)
            _require_small(depth, size, position)
            self._known[id(node)] = size, depth
        found = self._known[id(node)]
        if found is None:
            raise UserError(f"{position}: contains itself through an alias; remove the alias")
        return found

    def _children(self, node: yaml.Node) -> list[yaml.Node]:
        if isinstance(node, yaml.MappingNode):
            self._require_keys(node)
            return [value for _, value in node.value]
        if isinstance(node, yaml.SequenceNode):
            return list(node.value)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS:
            self._require_number(node)
        return []

    def _require_keys(self, node: yaml.MappingNode) -> None:
        keys: set[str] = set()
        for key, _ in node.value:
            position = self._loader.position(key.start_mark.line)
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{position}: a key is a list or a section; write a text")
            if key.value in keys:
                raise UserError(f"{position}: {key.value}: duplicate key; remove one of them")
            if key.tag not in _KEYS:
                kind = key.tag.removeprefix(_TAG)
                raise UserError(
                    f"{position}: YAML reads the key {key.value} as a value of type {kind}; put it in quotes"
                )
            keys.add(key.value)

    def _require_number(self, node: yaml.ScalarNode) -> None:
        position = self._loader.position(node.start_mark.line)
        if len(node.value) > _LONGEST_NUMBER:
            raise UserError(
                f"{position}: a number has {len(node.value)} characters; write a shorter one, or put the text in quotes"
            )
        try:
            self._loader.construct_object(node)
        except ValueError as error:
            raise UserError(f"{position}: {brief(node.value)} is not a number; put the text in quotes") from error


def _require_small(depth: int, nodes: int, position: str) -> None:
    if depth > _DEEPEST:
        raise UserError(f"{position}: is nested more than {_DEEPEST} levels deep; remove levels")
    if nodes > _MOST_NODES:
        raise UserError(f"{position}: has more than {_MOST_NODES:,} entries, with aliases expanded; remove some")
