"""The stages that are installed: found by reading their files, so that listing them imports none."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vlpipe.pipeline.stage import GatherStage, MapStage, SourceStage, Stage
from vlpipe.pipeline.steps.canonical import as_written, canonical
from vlpipe.pipeline.workflow.load import STAGES
from vlpipe.pipeline.workflow.params import adapter, find, modules_below

KINDS = ((SourceStage, "source"), (MapStage, "map"), (GatherStage, "gather"))


@dataclass(frozen=True, slots=True)
class Entry:
    """A stage as its file declares it. use: the value of `use:`; summary: first sentence of its docstring."""

    use: str
    summary: str

    @property
    def room(self) -> str:
        return self.use.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a stage. default: as JSON; None with `required`. about: what the docstring says; may be empty."""

    name: str
    type: str
    required: bool
    default: Any
    about: str


@dataclass(frozen=True, slots=True)
class Described:
    """A stage with its parameters. kind: source, map or gather; about: the docstring without indentation."""

    use: str
    kind: str
    version: int
    about: str
    parameters: tuple[Parameter, ...]


def entries() -> list[Entry]:
    """Returns the installed stages by `use`. A stage is a class with a NAME in a module of vlpipe.stages."""
    return sorted(_entries(), key=lambda entry: entry.use)


def _entries() -> Iterator[Entry]:
    for module, file in modules_below(STAGES).items():
        text = file.read_text(encoding="utf-8")
        if re.search(r"^ +NAME\b.*= ", text, re.MULTILINE):
            yield from _declared(module, ast.parse(text))


def _declared(module: str, tree: ast.Module) -> Iterator[Entry]:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_sets_name(line) for line in node.body):
            about = ast.get_docstring(node) or ""
            if not about.startswith("Base class of"):
                yield Entry(f"{module}:{node.name}", first_sentence(about))


def _sets_name(line: ast.stmt) -> bool:
    if not (isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)):
        return False
    return line.target.id == "NAME" and isinstance(line.value, ast.Constant) and bool(line.value.value)


def first_sentence(text: str) -> str:
    """Returns the first sentence of a docstring on one line."""
    first = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", first, maxsplit=1)[0]


def describe(use: str) -> Described:
    """Returns a stage with its parameters, in the order of its class. Raises ValueError if there is no such stage."""
    cls = find(use, STAGES)
    if not issubclass(cls, Stage) or not dataclasses.is_dataclass(cls):
        raise ValueError(f"{use} is not a stage")
    about = inspect.getdoc(cls) or ""
    properties = parameter_schemas(cls)[0]
    said: dict[str, str] = {}
    for one in cls.__mro__:  # parameters that a base class has are explained there
        if dataclasses.is_dataclass(one):
            said = comments(inspect.getsource(one)) | sayings(one.__doc__ or "", list(properties)) | said
    defaults = _defaults(cls)
    return Described(
        use=use,
        kind=kind_of(cls),
        version=cls.VERSION,
        about=about,
        parameters=tuple(
            Parameter(name, type_text(schema), name not in defaults, defaults.get(name), said.get(name, ""))
            for name, schema in properties.items()
        ),
    )


def kind_of(cls: type[Stage]) -> str:
    """Returns source, map or gather."""
    return next((kind for base, kind in KINDS if issubclass(cls, base)), "stage")


def parameter_schemas(cls: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns (parameter -> JSON Schema, definitions that these refer to) of a stage, or of another dataclass."""
    whole = adapter(cls).json_schema(mode="validation", ref_template="#/$defs/{model}")
    definitions = whole.pop("$defs", {})
    if "$ref" in whole:  # a class that refers to itself
        whole = definitions[whole["$ref"].rpartition("/")[2]]
    return whole.get("properties", {}), definitions


def _defaults(cls: type) -> dict[str, Any]:
    """Returns parameter -> default as JSON, for those that have one."""
    missing, found = dataclasses.MISSING, {}
    for each in dataclasses.fields(cls):
        if each.default is not missing:
            found[each.name] = canonical(each.default, as_written)
        elif each.default_factory is not missing:
            found[each.name] = canonical(each.default_factory(), as_written)
    return found


def sayings(about: str, names: list[str]) -> dict[str, str]:
    """Returns parameter -> what a docstring says of it: the text after `name:` or `name, other:` up to the next such place,
    or that in `name (...)`.
    """
    text = " ".join(about.split())
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    if not one:
        return {}
    places = [*re.finditer(rf"(?:(?<=^)|(?<=[.;:)] ))((?:{one})(?:, (?:{one}))*): ", text)]
    ends = [*(place.start() for place in places[1:]), len(text)]
    found: dict[str, str] = {}
    for place, end in zip(places, ends, strict=False):
        for name in place[1].split(", "):
            found.setdefault(name, text[place.end() : end].strip().rstrip(";"))
    for name in names:  # `name (what it is), other_name (...)`
        if name not in found and "_" in name and (inside := re.search(rf"\b{name} \(([^()]+)\)", text)):
            found[name] = inside[1]
    return found


def comments(source: str) -> dict[str, str]:
    """Returns field -> the comment behind it, or else the comment lines above it, in the source of a dataclass."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in source.splitlines():
        field = re.match(r"    (\w+): [^#]*(?:# (.+))?$", line)
        if field and (said := field[2] or " ".join(above)):
            found[field[1]] = said
        above = [*above, line.strip(" #")] if line.startswith("    # ") else []
        above = above if above and not above[0][0].isupper() else []  # else the title of a group of fields
    return found


def type_text(schema: Mapping[str, Any]) -> str:
    """Returns a JSON Schema in a few words: `number > 0`, `text or null`, `list of text`, `one of: a, b`."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_text(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return "one of: " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items")
        return f"list of {type_text(inner)}" if isinstance(inner, dict) and inner else "list"
    if kind == "object" or "$ref" in schema:
        inner = schema.get("additionalProperties")
        return f"mapping to {type_text(inner)}" if isinstance(inner, dict) and inner else "mapping"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    limits = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    words = [names.get(str(kind), str(kind) if kind else "value")]
    return " ".join(words + [f"{sign} {schema[key]:g}" for key, sign in limits.items() if key in schema])
