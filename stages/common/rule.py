"""Filter rules: a rule is a condition that a row or text must meet to be kept, its source, and its encoder.

A preset is a YAML list of rules, in `presets` beside this file or your own. It contains every rule of its source (a paper
or code). If a rule's column is not in the input, the plan fails until the rule is listed in `skip`; `needs` names the stage
or tool that computes the column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, TypeAdapter, ValidationError

from vlpipe.pipeline.errors import SchemaError, VlpipeError, WorkflowError, did_you_mean
from vlpipe.pipeline.shard import need
from vlpipe.pipeline.workflow.yaml_lines import Problem, parse
from vlpipe.stages.common.measures import ROW_MEASURES, TEXT_MEASURES, names
from vlpipe.stages.common.row import TEXT

PRESETS = Path(__file__).with_name("presets")
ENCODER = b"vlpipe.encoder"  # field metadata: the model that computes a column's values

Op = Literal["<", "<=", ">", ">=", "==", "!=", "in", "not_in", "matches", "not_matches"]
Value = bool | int | float | str | tuple[str, ...] | tuple[int, ...]
LIST_OPS, REGEX_OPS, ORDER_OPS = {"in", "not_in"}, {"matches", "not_matches"}, {"<", "<=", ">", ">="}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`column op value` must hold; otherwise the row is rejected, or the text dropped, with the code `id`.

    column: a measure (`common.measures`), a column of the row, or a field of texts such as `texts.score`. A list column
    must have one value per text; it judges texts, as text measures do. `matches` searches for a regular expression (RE2).
    on_missing: what a null value does: `reject` (as if the condition failed), `keep`, or `error` (the step fails).
    encoder: the model whose scores the threshold is for; must be the encoder of the column. needs: the
    stage or tool that computes the column. source: the paper or code the value is from.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    column: str
    op: Op
    value: Value
    id: str = ""
    on_missing: Literal["reject", "keep", "error"] = "reject"
    encoder: str = ""
    needs: str = ""
    source: str = ""

    @property
    def code(self) -> str:
        """The reject code: `id`, or the column if there is none."""
        return self.id or self.column

    def __str__(self) -> str:
        value = json.dumps(self.value, ensure_ascii=False)
        return f"{self.column} {self.op} {value}"

    def problems(self) -> Iterator[str]:
        """Yields error texts for mistakes in the rule itself, which do not depend on the input columns."""
        if (self.op in LIST_OPS) != isinstance(self.value, tuple):
            wanted = "a list" if self.op in LIST_OPS else "one value"
            yield f"rule {self.code}: {self.op!r} needs {wanted}, but the rule is `{self}`"
        elif self.op in REGEX_OPS:
            yield from _regex_problems(self)
        elif self.op in ORDER_OPS and (isinstance(self.value, (bool, str))):
            yield f"rule {self.code}: {self.op!r} compares numbers, but the rule is `{self}`"


def _regex_problems(rule: Rule) -> Iterator[str]:
    try:
        pc.match_substring_regex(pa.array([""]), str(rule.value))
    except pa.ArrowInvalid as error:
        yield f"rule {rule.code}: {rule.value!r} is not a valid regular expression: {error}"


def load_preset(name: str) -> tuple[Rule, ...]:
    """Returns the rules of a preset, given by its name or YAML path. Raises VlpipeError if it is missing or invalid."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else PRESETS / f"{name}.yaml"
    if not path.is_file():
        if name.endswith((".yaml", ".yml")):
            raise VlpipeError(f"preset: there is no file {path}")
        there = did_you_mean(name, (p.stem for p in PRESETS.glob("*.yaml")))
        raise VlpipeError(f"there is no preset {name!r}{there}")
    problems: list[Problem] = []
    try:
        found = parse(path.read_text(encoding="utf-8"), problems)
    except UnicodeDecodeError as error:
        raise VlpipeError(f"preset {path} is not UTF-8 text: {error}") from error
    if problems:
        raise WorkflowError(f"preset {path}", problems)
    given = found.get("rules") if isinstance(found, dict) else None
    if not isinstance(given, list):
        raise VlpipeError(
            f'preset {path} has no list `rules`; wanted YAML such as `rules: [{{column: width, op: ">=", value: 200}}]`'
        )
    return tuple(_rule(path, number, each) for number, each in enumerate(given, 1))


def _rule(path: Path, number: int, given: Any) -> Rule:
    try:
        return TypeAdapter(Rule).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise VlpipeError(f"preset {path}, rule {number}: {where}: {first['msg']}") from error


def choose(rules: Sequence[Rule], skip: Sequence[str]) -> tuple[Rule, ...]:
    """Returns the rules whose code is not in `skip`.

    Raises VlpipeError if `skip` has a code of no rule, or two rules have the same code.
    """
    codes = [rule.code for rule in rules]
    for code in skip:
        if code not in codes:
            raise VlpipeError(f"skip: there is no rule {code!r}{did_you_mean(code, codes)}")
    twice = sorted({code for code in codes if codes.count(code) > 1})
    if twice:
        raise VlpipeError(f"two rules have the reject code {twice[0]!r}; give one of them another `id`")
    return tuple(rule for rule in rules if rule.code not in skip)


@dataclass(frozen=True, slots=True)
class RuleInput:
    """The source of a rule's values (a measure, a column, or a field of `texts`) and their type."""

    kind: Literal["row_measure", "text_measure", "column", "text_column", "text_field"]
    dtype: pa.DataType

    @property
    def judges_texts(self) -> bool:
        """Returns whether the rule drops texts rather than rejects rows."""
        return self.kind.startswith("text")


def place(rule: Rule, schema: pa.Schema) -> RuleInput:
    """Returns the input of a rule in `schema`. Raises SchemaError, with a remedy, if the rule cannot be applied."""
    name, found = rule.column, None
    if name in TEXT_MEASURES:
        found = RuleInput("text_measure", TEXT_MEASURES[name][1])
    elif name in ROW_MEASURES:
        found = _row_measure(rule, schema)
    elif name.startswith("texts."):
        field = name.removeprefix("texts.")
        at = TEXT.get_field_index(field)
        if at < 0:
            fields = [TEXT.field(i).name for i in range(TEXT.num_fields)]
            raise SchemaError(
                f"rule {rule.code}: the column texts has no field {field!r}{did_you_mean(field, fields)}"
            )
        found = RuleInput("text_field", TEXT.field(at).type)
    elif name in schema.names:
        dtype = schema.field(name).type
        found = (
            RuleInput("text_column", dtype.value_type)
            if pa.types.is_list(dtype)
            else RuleInput("column", dtype)
        )
    if found is None:
        raise SchemaError(_not_there(rule, schema))
    _check_type(rule, found.dtype)
    return found


def _row_measure(rule: Rule, schema: pa.Schema) -> RuleInput:
    _, dtype, reads = ROW_MEASURES[rule.column]
    need(schema, f"rule {rule.code} ({rule.column})", **reads)
    return RuleInput("row_measure", dtype)


def _help(rule: Rule) -> str:
    return f"; it needs {rule.needs}, or skip: [{rule.code}]" if rule.needs else ""


def _not_there(rule: Rule, schema: pa.Schema) -> str:
    if rule.needs:
        return f"rule {rule.code} ({rule}): no step above writes {rule.column!r}{_help(rule)}"
    known = [*schema.names, *names()]
    return (
        f"rule {rule.code}: there is no column or measure {rule.column!r}{did_you_mean(rule.column, known)}"
    )


def _check_type(rule: Rule, dtype: pa.DataType) -> None:
    if rule.op in REGEX_OPS:
        fits = pa.types.is_string(dtype)
    else:
        values = rule.value if isinstance(rule.value, tuple) else (rule.value,)
        fits = all(_fits(value, dtype) for value in values)
    if not fits:
        raise SchemaError(
            f"rule {rule.code}: column {rule.column!r} is {dtype}, but `{rule}` needs a column of {_wanted(rule)}"
        )


def _wanted(rule: Rule) -> str:
    """Returns the types that a rule can be applied to, for an error text."""
    first = rule.value[0] if isinstance(rule.value, tuple) and rule.value else rule.value
    if rule.op in REGEX_OPS or isinstance(first, str):
        return "strings"
    return "booleans" if isinstance(first, bool) else "numbers"


def _fits(value: Any, dtype: pa.DataType) -> bool:
    if isinstance(value, bool):
        return bool(pa.types.is_boolean(dtype))
    if isinstance(value, str):
        return bool(pa.types.is_string(dtype))
    return bool(pa.types.is_integer(dtype) or pa.types.is_floating(dtype))


def check_encoder(rule: Rule, schema: pa.Schema) -> None:
    """Raises SchemaError unless the rule's `encoder` is that of its column. Only schemas of the plan record encoders.

    A threshold is valid for one encoder only: 0.28 for CLIP B/32 means nothing for another model's scores.
    A rule that compares with no threshold (`==`, `in`, `matches`) may leave `encoder` out.
    """
    column = rule.column.partition(".")[0]
    bound = encoder_of(schema, column) if column in schema.names else ""
    if rule.encoder == bound or (not rule.encoder and rule.op not in ORDER_OPS):
        return
    if not bound:
        raise SchemaError(
            f"rule {rule.code}: {rule} is for scores of {rule.encoder}, but no step above declares the encoder of "
            f"{rule.column!r}{_help(rule)}"
        )
    if not rule.encoder:
        raise SchemaError(
            f"rule {rule.code}: {rule.column!r} has scores of {bound}; add `encoder: {bound}` if the threshold of `{rule}` "
            "is for them"
        )
    raise SchemaError(
        f"rule {rule.code}: {rule} is for scores of {rule.encoder}, but {column!r} has scores of {bound}"
        f"{_help(rule)}"
    )


def scored(name: str, dtype: pa.DataType, encoder: str) -> pa.Field:
    """Returns a field marked as computed by `encoder`."""
    return pa.field(name, dtype, metadata={ENCODER: encoder})


def encoder_of(schema: pa.Schema, column: str) -> str:
    """Returns the encoder that computes a column, or "" if no stage declares one."""
    return ((schema.field(column).metadata or {}).get(ENCODER) or b"").decode()
