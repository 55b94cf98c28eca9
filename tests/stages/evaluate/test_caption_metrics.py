"""ROUGE-L against hand-worked cases, METEOR and SPICE where Java is, scores of domains, and files of results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import text
from vlpipe.stages.evaluate.caption_metrics import java
from vlpipe.stages.evaluate.caption_metrics.results import CaptionResults
from vlpipe.stages.evaluate.caption_metrics.rouge import BETA, rouge_l
from vlpipe.stages.evaluate.caption_scores import more_scores
from vlpipe.stages.evaluate.captions import Captions

Rows = Callable[..., pa.Table]


def f(precision: float, recall: float) -> float:
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


@pytest.mark.parametrize(
    ("caption", "references", "wanted"),
    [
        ("police killed the gunman", ["police kill the gunman"], f(3 / 4, 3 / 4)),  # Lin 2004, section 3
        ("the gunman kill police", ["police kill the gunman"], f(2 / 4, 2 / 4)),
        ("a dog", ["a small dog runs"], f(1, 2 / 4)),
        ("a dog", ["a cat on a mat", "the dog"], f(1 / 2, 1 / 2)),  # P from either, R from the second
        ("b a a b", ["a b", "a a a"], f(2 / 4, 1)),
        ("a dog", ["two cats"], 0.0),
        ("", ["two cats"], 0.0),
        ("a dog", ["", "a dog"], 1.0),
    ],
)
def test_rouge_l_of_cases_worked_by_hand(caption: str, references: list[str], wanted: float) -> None:
    assert rouge_l(caption.split(), [r.split() for r in references]) == pytest.approx(wanted)


def test_rouge_l_equals_the_definition_and_the_other_code() -> None:
    """All subsequences are tried; pycocoevalcap's scorer is the second code."""
    from pycocoevalcap.rouge.rouge import Rouge

    pairs = [("a b c a", "b a c"), ("c a b", "a b c a b"), ("a a", "b a b a"), ("c", "a c a")]
    for caption, reference in pairs:
        a, b = caption.split(), reference.split()
        of_b = {one for n in range(len(b) + 1) for one in combinations(b, n)}
        longest = max(n for n in range(len(a) + 1) if any(one in of_b for one in combinations(a, n)))
        assert rouge_l(a, [b]) == pytest.approx(f(longest / len(a), longest / len(b)))
        assert rouge_l(a, [b]) == pytest.approx(Rouge().calc_score([caption], [reference]))
    score, each = more_scores("rouge_l", ["A dog.", "two cats"], [["a dog"], ["one dog"]])
    assert (score, list(each if each is not None else ())) == (0.5, [1.0, 0.0])


@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is computed in Java, which is not here")
@pytest.mark.slow
def test_meteor_of_one_right_and_one_wrong_caption() -> None:
    score, each = more_scores(
        "meteor", ["A red dog runs.", "seven trees"], [["a red dog runs"], ["a big ball"]]
    )
    assert 0.3 < score < 0.8
    assert each is None


def test_what_java_metrics_lack_is_said(monkeypatch: pytest.MonkeyPatch, weights: Weights) -> None:
    monkeypatch.setattr(java, "CORENLP", ("no-such.jar",))
    monkeypatch.setattr(java.shutil, "which", lambda name: "/usr/bin/java")
    [problem] = Captions(model=weights, more=("rouge_l", "meteor", "spice")).preflight()
    assert problem.startswith("spice needs no-such.jar in ")
    assert "python -m pycocoevalcap.spice.get_stanford_models" in problem
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    problems = Captions(model=weights, more=("meteor", "spice")).preflight()
    assert ["no program `java` on the PATH" in one for one in problems] == [True, True]
    with pytest.raises(VlpipeError, match="meteor is computed in Java, but there is no program `java`"):
        more_scores("meteor", ["a"], [["a"]])


def test_java_that_ends_early_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "java").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(java, "CORENLP", ())
    with pytest.raises(VlpipeError, match="meteor: its Java process ended early"):
        java.meteor(["a"], [["a"]])


def test_scores_of_each_domain(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    table = image_rows(
        [[text(words, "human")] for words in ("a dog", "a star", "two dogs", "red", "a square")]
    )
    domains = pa.array(["in-domain", "out-domain", "in-domain", None, "near-domain"])
    data = dataset(tmp_path / "rows", table.append_column("domain", domains), shard_rows=2)
    stage = Captions(model=weights, batch_size=16, max_length=6, more=("rouge_l",), by="domain")
    out = run_gather(stage, [data], tmp_path)
    found = {row["name"]: row for row in out.table.to_pylist()}
    names = ["cider", "bleu@4", "rouge_l"]
    assert list(found) == [*names, *(f"{name}/in-domain" for name in names)]  # the others have one image each
    assert [found[f"rouge_l{of}"]["num_rows"] for of in ("", "/in-domain")] == [5, 2]
    items = pq.read_table(out.artifacts / "items.parquet").to_pylist()
    each = {one["row"]: one["value"] for one in items if one["metric"] == "rouge_l"}
    assert found["rouge_l"]["value"] == pytest.approx(sum(each.values()) / 5)
    assert found["rouge_l/in-domain"]["value"] == pytest.approx((each["row0"] + each["row2"]) / 2)


def test_results_are_one_caption_of_each_image_number(image_rows: Rows, tmp_path: Path) -> None:
    rows = [
        [text("a web text", "web"), text("a dog", "blip"), text("a cat", "blip")],
        [text("a star", "blip")],
    ]
    table = image_rows(rows).append_column("image_number", pa.array([7, 3], pa.int64()))
    stage = CaptionResults(source="blip")
    out = run_gather(stage, [dataset(tmp_path / "rows", table)], tmp_path / "a")
    assert json.loads((out.artifacts / "results.json").read_text()) == [
        {"image_id": 7, "caption": "a dog"},
        {"image_id": 3, "caption": "a star"},
    ]
    with pytest.raises(VlpipeError, match="row row0 has no text of source 'git'"):
        run_gather(CaptionResults(source="git"), [dataset(tmp_path / "rows", table)], tmp_path / "b")
    twice = image_rows(rows).append_column("image_number", pa.array([7, 7], pa.int64()))
    with pytest.raises(VlpipeError, match="row row1: another row has the image_number 7, too"):
        run_gather(stage, [dataset(tmp_path / "twice", twice)], tmp_path / "c")
