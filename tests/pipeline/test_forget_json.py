"""Rows in JSON artifacts: objects with their id go, and nothing that merely looks like one."""

import json
from pathlib import Path
from typing import Any

import pytest

from vlpipe.pipeline.forget.json_artifacts import names_rows, rewrite_json
from vlpipe.pipeline.forget.rows import ForgottenRows
from vlpipe.pipeline.parquet.text_sets import TextSet
from vlpipe.pipeline.storage.store import Store, sha256_file

GONE = ForgottenRows(TextSet.of("id", ["d", "7"]), taken={"a": frozenset({"a dog"})})
CASES: list[tuple[Any, Any]] = [
    ([{"id": "d"}, {"id": "a"}], [{"id": "a"}]),
    ({"rows": [{"id": "a", "texts": ["a dog", "a cat"]}]}, {"rows": [{"id": "a", "texts": ["a cat"]}]}),
    ([{"id": "b", "texts": ["a dog"]}], [{"id": "b", "texts": ["a dog"]}]),  # it had it itself
    ({"vocab": {"d": 1, "7": 2}, "labels": ["d", "7"]}, {"vocab": {"d": 1, "7": 2}, "labels": ["d", "7"]}),
    (
        {"added_tokens": [{"id": 7}], "threshold": 0.5, "id": "d"},
        {"added_tokens": [{"id": 7}], "threshold": 0.5, "id": "d"},
    ),
]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_objects_of_forgotten_rows_go(tmp_path: Path, before: Any, after: Any) -> None:
    store, path = Store(str(tmp_path)), tmp_path / "x.json"
    path.write_text(json.dumps(before))
    assert names_rows(store, "x.json", GONE) == (before != after)
    first = rewrite_json(store, "x.json", GONE)
    assert json.loads(path.read_text()) == after
    assert first.digest == sha256_file(path) == rewrite_json(store, "x.json", GONE).digest


@pytest.mark.parametrize("text", ["{", '{"id": "d"}\n{"id": "a"}', "[NaN]", ""])
def test_what_is_no_json_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert not names_rows(Store(str(tmp_path)), "x.json", GONE)
