"""Conditions as a person writes them after `--where`: `score < 0.5 and source = 'web'`."""

from __future__ import annotations

import re

import pyarrow as pa

from vlpipe.pipeline.inspect.rows.columns import Leaf, leaves
from vlpipe.pipeline.inspect.rows.conditions import BEST, WRITTEN, Condition

QUOTED = r"'(?:[^']|'')*'|\"[^\"]*\""
PART = re.compile(rf"((?:{QUOTED}|(?!\s+and\s)[^'\"])+?)(?:\s+and\s+|$)", re.IGNORECASE | re.DOTALL)
WORD = re.compile(r"\w+(\.\w+)*")


def written_conditions(where: str, schema: pa.Schema) -> list[Condition] | None:
    """Returns the conditions of a text that joins comparisons of a column and a value by `and`; None if it is anything
    else, which only SQL can say.

    A field of a list's structs may be named without the list, if no column and no other list has that name: `score` for
    `texts.score`. Texts stand in quotes; a bare word is a text too, unless it is the name of a column.
    """
    parts, end = [], 0
    for found in PART.finditer(where.strip()):
        if found.start() != end:
            return None
        parts.append(found[1])
        end = found.end()
    if not parts or end != len(where.strip()):
        return None
    known = {leaf.path: leaf for leaf in leaves(schema)}
    made = [_condition(part, known) for part in parts]
    return None if None in made else [one for one in made if one is not None]


def _condition(text: str, known: dict[str, Leaf]) -> Condition | None:
    found = WRITTEN.fullmatch(text)
    if found is None:
        return None
    path, value = _path(found[1], known), found[3]
    if path is None:
        return None
    is_number = known[path.removesuffix(BEST)].is_number
    if re.fullmatch(QUOTED, value, re.DOTALL):
        value = value[1:-1].replace("''", "'") if value[0] == "'" else value[1:-1]
    elif not (_is_number(value) or WORD.fullmatch(value)) or value in known:
        return None  # an expression, or another column
    if (is_number and not (_is_number(value) or value == "null")) or (is_number and found[2] == "~"):
        return None
    return Condition(path, found[2], value)


def _path(written: str, known: dict[str, Leaf]) -> str | None:
    best = BEST if written.endswith(BEST) and written not in known else ""
    name = written.removesuffix(BEST) if best else written
    if name not in known:
        ending = [path for path in known if path.endswith(f".{name}")]
        if len(ending) != 1:
            return None
        name = ending[0]
    return f"{name}{best}" if not best or known[name].is_number else None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
