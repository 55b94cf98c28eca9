"""Files of text that a parameter names: bombs, deep nesting and other kinds of values end with a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vlpipe.pipeline.errors import RowFault, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.stages.common.rule import load_preset
from vlpipe.stages.decontamination.texts import read_set
from vlpipe.stages.filter.balance import read_entries
from vlpipe.stages.filter.nsfw import ImageClassifier
from vlpipe.stages.lists.captions import read_captions
from vlpipe.stages.tars.tar_members import Span, read_json

DEEP = "[" * 200_000


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("a.jsonl", DEEP, lambda path: list(read_captions(path))),
        ("a.jsonl", DEEP, read_set),
        ("a.json", DEEP, read_entries),
        ("a.json", "[", read_entries),
        ("a.json", "[1, null]", read_entries),
        ("a.json", '"text"', read_entries),
        ("a.yaml", "rules: " + "[" * 2000, load_preset),
        (
            "a.yaml",
            "a0: &a0 [1]\n"
            + "".join(f"a{k}: &a{k} [{','.join([f'*a{k - 1}'] * 9)}]\n" for k in range(1, 12)),
            load_preset,
        ),
        ("a.yaml", "rules: 3", load_preset),
        ("a.yaml", "- a", load_preset),
        ("a.yaml", "", load_preset),
    ],
)
def test_it_is_said_which_file_is_wrong(
    tmp_path: Path, name: str, text: str, read: Callable[[str], object]
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(VlpipeError, match=name):
        read(str(tmp_path / name))


def test_a_member_of_a_tar(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_text(DEEP)
    with pytest.raises(RowFault, match="bad_json"):
        read_json(tmp_path / "a.tar", Span(0, len(DEEP)))


@pytest.mark.parametrize("text", [DEEP, "{", "[]", "{}", '{"id2label": 3}'])
def test_a_model_whose_config_is_odd(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (said,) = ImageClassifier(model=Weights(path=str(tmp_path))).preflight()
    assert said.startswith(f"{tmp_path}/config.json names no labels")
