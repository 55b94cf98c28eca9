"""YAML parser that records, for every key and item, the line (or the --set) it comes from.

It is stricter than YAML 1.1, whose surprises change experiments: keys are always text, a repeated key is an error,
`1e-4` is a number, `2020-01-01` is text, and a bare yes/no/on/off is refused because it may mean text or a boolean.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import yaml

from vlpipe.pipeline.errors import one_line, shown

Problem = tuple[int, str]

MAX_NODES = 50_000  # keys, values and items; an alias counts as the nodes it expands to
MAX_DEPTH = 50
TOO_MANY = f"more than {MAX_NODES:,} keys and values (aliases count as what they expand to); move long lists into files"
SURROGATE = re.compile(r"[\ud800-\udfff]")
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


class Where(NamedTuple):
    """A source location: a line of the file, from 1; or line 0, where `said` is the source (`--set a.b=c`)."""

    line: int
    said: str = ""

    def problem(self, text: str) -> Problem:
        return self.line, f"{one_line(self.said, 120)}: {text}" if self.said else text


class Map(dict[str, Any]):
    """A mapping with source locations: `at` of each key, `where` of the mapping itself."""

    def __init__(self, where: Where) -> None:
        super().__init__()
        self.where = where
        self.at: dict[str, Where] = {}

    def put(self, key: str, value: Any, where: Where) -> None:
        self[key], self.at[key] = value, where

    def without(self, *keys: str) -> Map:
        rest = Map(self.where)
        for key in self:
            if key not in keys:
                rest.put(key, self[key], self.at[key])
        return rest


class Seq(list[Any]):
    """A list with source locations: `at` of each item."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[Where] = []

    def put(self, value: Any, where: Where) -> None:
        self.append(value)
        self.at.append(where)


class RefusedScalar(str):
    """A scalar that is already reported; further problems with it are not reported."""

    __slots__ = ()


def place(node: Any, path: Sequence[str | int], default: Where) -> Where:
    """Returns the location of the deepest part of `path` that exists below `node`; `default` if its first key does not."""
    for key in path:
        if isinstance(node, Map) and key in node.at:
            default, node = node.at[str(key)], node[str(key)]
        elif isinstance(node, Seq) and isinstance(key, int) and key < len(node):
            default, node = node.at[key], node[key]
        else:
            break
    return default


def merge(base: Any, over: Any, top: bool = True) -> Any:
    """Returns `base` with the values of `over` merged in, recursively. Lists and other values are replaced.

    Below the top level, an empty mapping in `over`, or one with another `use` or `from`, replaces the mapping in `base`.
    """
    if not (isinstance(base, Map) and isinstance(over, Map)) or not (top or over):
        return over
    if not top and any(tag in over and over[tag] != base.get(tag) for tag in ("use", "from")):
        return over
    both = Map(base.where)
    for key in [*base, *(k for k in over if k not in base)]:
        if key in over:
            both.put(key, merge(base[key], over[key], top=False) if key in base else over[key], over.at[key])
        else:
            both.put(key, base[key], base.at[key])
    return both


def parse(text: str, problems: list[Problem], said: str = "") -> Any:
    """Returns the value of a YAML text; None for an empty or broken one. Mistakes are added to `problems`.

    said: names the source of text outside a file, such as `--set a.b=c`.
    """
    converter = _Converter(problems, said)
    try:
        node = yaml.compose(text, Loader=_Loader)
        return converter.value(node) if node is not None else None
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, said))
    except _TooMuch as error:
        problems.append(converter.where(error.node).problem(error.text))
    return None


def parse_typed(text: str, problems: list[Problem], said: str) -> Any:
    """Returns the value of a text typed in a shell. As `parse`, but # does not start a comment."""
    stand_in = next(chr(n) for n in range(0xE000, 0xF8FF) if chr(n) not in text)

    def back(value: Any) -> Any:
        if isinstance(value, Map):
            made = Map(value.where)
            for key, item in value.items():
                made.put(back(key), back(item), value.at[key])
            return made
        if isinstance(value, Seq):
            value[:] = [back(item) for item in value]
        return type(value)(value.replace(stand_in, "#")) if isinstance(value, str) else value

    found: list[Problem] = []
    value = back(parse(text.replace("#", stand_in), found, said))
    problems += [(line, problem.replace(stand_in, "#")) for line, problem in found]
    return value


class _TooMuch(Exception):
    """The YAML exceeds MAX_NODES or MAX_DEPTH, as with aliases of aliases or deeply nested brackets."""

    def __init__(self, node: yaml.Node, text: str) -> None:
        self.node, self.text = node, text


def _syntax(error: yaml.YAMLError, text: str, said: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:  # a character that YAML does not allow
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        return Where(0 if said else line, said).problem(f"not YAML: {getattr(error, 'reason', error)}")
    lines = text.splitlines()
    there = one_line(lines[mark.line].strip(), 80) if mark.line < len(lines) else "the end of the file"
    why = str(getattr(error, "problem", "") or error)
    if "'\\t'" in why:
        why = "a tab; YAML is indented with spaces"
    return Where(0 if said else mark.line + 1, said).problem(
        f"not YAML: {why} (column {mark.column + 1}): {there}"
    )


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (PyYAML's own way)

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """PyYAML's recursive method, with limits on depth and number of nodes."""
        self._depth, self._num_nodes = self._depth + 1, self._num_nodes + 1
        if self._depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            mark = self.peek_event().start_mark
            text = TOO_DEEP if self._depth > MAX_DEPTH else TOO_MANY
            raise _TooMuch(yaml.ScalarNode("", "", mark, mark), text)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_TAG = "tag:yaml.org,2002:"
_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN", lambda _: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda s: s.lower() == "true"),
    "int": (r"[-+]?[0-9][0-9_]*", "-+0123456789", lambda s: int(s.replace("_", ""))),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?",
        "-+0123456789.",
        lambda s: float(s.replace("_", "")),
    ),
    "str": ("", "", str),
}
for _name, (_pattern, _first, _) in _SCALARS.items():
    if _first:
        _loader_first = [*_first, ""] if _name == "null" else [*_first]
        _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), _loader_first)


class _Converter:
    """Converts YAML nodes to Map, Seq and plain scalars."""

    def __init__(self, problems: list[Problem], said: str) -> None:
        self.problems, self.said = problems, said
        self._open: list[yaml.Node] = []
        self._num_nodes = 0

    def where(self, node: yaml.Node) -> Where:
        return Where(0, self.said) if self.said else Where(node.start_mark.line + 1)

    def value(self, node: yaml.Node) -> Any:
        self._num_nodes += 1
        if self._num_nodes > MAX_NODES or len(self._open) > MAX_DEPTH:
            raise _TooMuch(self._written(node), TOO_MANY if self._num_nodes > MAX_NODES else TOO_DEEP)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if any(node is outer for outer in self._open):
            self.problems.append(self.where(node).problem("an alias (*) must not contain itself"))
            return None
        self._open.append(node)
        value = self.mapping(node) if isinstance(node, yaml.MappingNode) else self.sequence(node)
        self._open.pop()
        return value

    def _written(self, node: yaml.Node) -> yaml.Node:
        """Returns the deepest open node that was not reached through an alias; its line is where the text is written."""
        way = [*self._open, node]
        back = (i for i in range(1, len(way)) if way[i].start_mark.index < way[i - 1].start_mark.index)
        return way[next(back, len(way)) - 1]

    def mapping(self, node: yaml.MappingNode) -> Map:
        made = Map(self.where(node))
        for key_node, value_node in node.value:
            where = self.where(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(where.problem("a key must be text, not a list or mapping"))
                continue
            key = str(key_node.value)  # `on:` and `1:` are text
            if SURROGATE.search(key):
                self.problems.append(
                    where.problem(f"key {shown(key)} contains a lone surrogate (half a character)")
                )
                continue
            if key == "<<" and key_node.style is None:
                continue
            if key in made:
                first = "" if self.said else f"; first on line {made.at[key].line}"
                self.problems.append(where.problem(f"key {shown(key)} appears twice{first}"))
                continue
            made.put(key, self.value(value_node), where)
        for merged in (
            v for k, v in node.value if isinstance(k, yaml.ScalarNode) and k.value == "<<" and k.style is None
        ):
            self.merge_in(made, merged)
        return made

    def merge_in(self, made: Map, node: yaml.Node) -> None:
        """Adds the keys of `<<: *other` or `<<: [*one, *two]` that `made` lacks; the first mapping that has a key wins."""
        many = node.value if isinstance(node, yaml.SequenceNode) else [node]
        for each in many:
            other = self.value(each)
            if not isinstance(other, Map):
                text = "<<: wanted a mapping to take keys from, such as *NAME, or a list of them"
                self.problems.append(self.where(each).problem(text))
                return
            for key in (k for k in other if k not in made):
                made.put(key, other[key], other.at[key])

    def sequence(self, node: yaml.Node) -> Seq:
        made = Seq()
        for item in node.value:
            made.put(self.value(item), self.where(item))
        return made

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text, tag = node.value, node.tag.removeprefix(_TAG)
        if node.style is None and text.lower() in ("yes", "no", "on", "off"):
            hint = f'write true or false, or "{text}" in quotes for the text'
            return self.refuse(node, f"bare {text} is a boolean in some YAML and text in others; {hint}")
        try:
            value = _SCALARS[tag][2](text)
        except (KeyError, ValueError):
            return self.refuse(
                node, f"tag {shown(node.tag)} cannot be used for {shown(text)}; leave the tag out"
            )
        if value in (math.inf, -math.inf):
            return self.refuse(node, f"{shown(text)} is too large for a number")
        if isinstance(value, str) and not value.isascii() and SURROGATE.search(value):
            return self.refuse(node, f"{shown(text)} contains a lone surrogate (half a character)")
        return value

    def refuse(self, node: yaml.ScalarNode, text: str) -> RefusedScalar:
        self.problems.append(self.where(node).problem(text))
        return RefusedScalar(SURROGATE.sub("?", node.value))
