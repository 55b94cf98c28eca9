"""Windows of contexts, places of answers, and the answer that is chosen of all windows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.systems.text.bert import Bert
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.row import text
from vlpipe.stages.loading.makers.tasks.question import (
    ANSWER_SPANS,
    NONE,
    QuestionInContext,
    Window,
    starts,
    windows,
)
from vlpipe.stages.loading.makers.tasks.sentences import Score, Sentences
from vlpipe.stages.loading.rows import Row
from vlpipe.stages.text_tasks.answered import SquadScores, _is_best_window
from vlpipe.stages.text_tasks.squad import QUESTIONS

CONTEXT = "a b c d e f g h i j"  # ten tokens, two characters apart
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b c d e f g h i j x y z"] * 3, 60)


@pytest.mark.parametrize(
    ("num", "room", "stride", "wanted"),
    [
        (10, 10, 3, [0]),
        (10, 4, 3, [0, 3, 6]),
        (10, 4, 9, [0, 4, 8]),
        (11, 4, 3, [0, 3, 6, 9]),
        (0, 4, 3, [0]),
    ],
)
def test_windows_cover_all_tokens(num: int, room: int, stride: int, wanted: list[int]) -> None:
    assert starts(num, room, stride) == wanted


def test_a_window_by_hand(tokenizer: Tokenizer) -> None:
    """Room for 10 - 2 - 3 = 5 tokens beside a question that is cut to 2."""
    found = windows(tokenizer, "x y z", CONTEXT, length=10, max_question=2, stride=3)
    assert [one.first for one in found] == [0, 3, 6]
    x, y = tokenizer.ids("x y")
    assert found[1].ids == [tokenizer.start, x, y, tokenizer.end, *tokenizer.ids("d e f g h"), tokenizer.end]
    assert found[1].segment == [0] * 4 + [1] * 6
    assert found[1].chars == [(6, 7), (8, 9), (10, 11), (12, 13), (14, 15)]
    assert len(found[2].ids) == 4 + 4 + 1
    answer = (CONTEXT.index("f"), CONTEXT.index("g") + 1)
    assert [one.place(answer) for one in found] == [NONE, (6, 7), NONE]  # whole in the second window only
    with pytest.raises(VlpipeError, match="2 tokens of the question leave no room for a context in 5 tokens"):
        windows(tokenizer, "x y z", CONTEXT, length=5, max_question=2, stride=3)


def row(context: str, *answers: tuple[str, int]) -> Row:
    column = pa.array([[{"text": t, "start": s} for t, s in answers]], ANSWER_SPANS)
    return Row("row0", 0, ["x y"], {"context": context, "answers": column[0]})


def test_a_sample_is_a_window_with_its_target(tokenizer: Tokenizer) -> None:
    """Windows are drawn evenly; those without the whole answer have the target of none, as questions without answer."""
    maker = QuestionInContext(tokenizer=tokenizer, max_length=10, stride=3)
    one = row(CONTEXT, ("f g", CONTEXT.index("f")), ("a", 0))
    drawn = [maker(one, "x y", np.random.default_rng(k)) for k in range(300)]
    spans = Counter(tuple(item["target/span"].tolist()) for item in drawn)
    assert spans.keys() == {NONE, (6, 7)}
    assert abs(spans[6, 7] - 100) < 4 * (300 * 2 / 9) ** 0.5
    stream = maker.collate(drawn[:3])
    assert stream.target["span"].shape == (3, 2)
    assert stream.extra["segment"].shape == stream.data.shape
    none = maker(row(CONTEXT), "x y", RNG)
    assert tuple(none["target/span"].tolist()) == NONE


def test_a_token_is_looked_at_where_it_has_most_context() -> None:
    """Two windows of tokens 0 to 4 and 3 to 7: token 3 has 1 on its poorer side in the first and 0 in the second."""
    both = [Window([], [], 0, first, [(0, 0)] * 5) for first in (0, 3)]
    assert [_is_best_window(both, 0, token) for token in range(5)] == [True, True, True, True, False]
    assert [_is_best_window(both, 1, token) for token in range(5)] == [False, True, True, True, True]


def scores(window: Window, **at: dict[int, float]) -> Any:
    found = np.zeros((len(window.ids), 2), np.float32)
    for column, name in enumerate(("first", "last")):
        for place, value in at.get(name, {}).items():
            found[place, column] = value
    return found


def test_the_answer_is_the_best_span_of_all_windows(tokenizer: Tokenizer) -> None:
    stage = SquadScores(model=Weights(path="nowhere"), max_answer=3)
    found = windows(tokenizer, "x y", CONTEXT, length=10, max_question=2, stride=3)  # d e f g h in the second
    logits = [scores(one) for one in found]
    logits[1] = scores(found[1], first={6: 5.0}, last={8: 4.0})  # f to h
    assert stage.answer(CONTEXT, found, logits) == "f g h"
    shorter = SquadScores(model=stage.model, max_answer=2)
    assert shorter.answer(CONTEXT, found, logits) in ("f g", "f")  # h is too far from f
    # the last before the first is no span; 10 + 0 is more than f to h, 5 + 4
    logits[2] = scores(found[2], first={7: 10.0}, last={5: 9.0})
    assert stage.answer(CONTEXT, found, logits) == "j"
    # none scores 6 in the window where it scores least, 4 less than the best span
    for one, value in zip(logits, (9.0, 3.0, 4.0), strict=True):
        one[0] = value
    decline = SquadScores(model=stage.model, max_answer=3, can_decline=True)
    assert decline.answer(CONTEXT, found, logits) == "j"
    willing = SquadScores(model=stage.model, max_answer=3, can_decline=True, threshold=-5.0)
    assert willing.answer(CONTEXT, found, logits) == ""


def questions(*given: tuple[str, str, list[tuple[str, int]]]) -> pa.Table:
    rows = [
        {
            "id": f"r{k}",
            "url": name,
            "texts": [text("x y", "human")],
            "context": context,
            "answers": [{"text": t, "start": s} for t, s in answers],
        }
        for k, (name, context, answers) in enumerate(given)
    ]
    return pa.Table.from_pylist(rows, QUESTIONS)


def test_figures_and_predictions_do_not_depend_on_batches(tokenizer: Tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Bert(
        vocab_size=tokenizer.vocab_size,
        width=8,
        layers=1,
        heads=2,
        max_text_length=10,
        finds_spans=True,
        init_std=0.5,
    )
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer")
    weights = Weights(path=str(tmp_path / "model"))
    given = [("long", CONTEXT, [("f g", 10)]), ("short", "c d", [("c", 0), ("d", 2)]), ("none", "e f g", [])]
    data = dataset(tmp_path / "rows", questions(*given))
    found = []
    for size in (1, 2, 16):
        stage = SquadScores(model=weights, stride=3, batch_size=size, can_decline=True)
        out = run_gather(stage, [data], tmp_path / f"out{size}")
        said = json.loads((Path(out.artifacts) / "predictions.json").read_text())
        found.append((said, [(r["name"], r["value"]) for r in out.table.to_pylist()]))
    assert found[0] == found[1] == found[2]
    said, values = found[0]
    assert list(said) == ["long", "short", "none"]
    assert all(answer in context for answer, (_, context, _) in zip(said.values(), given, strict=True))
    assert [name for name, _ in values] == [
        "exact",
        "f1",
        "exact/answered",
        "f1/answered",
        "exact/unanswered",
    ]


def test_one_or_two_sentences_and_their_score(tokenizer: Tokenizer) -> None:
    maker = Sentences(tokenizer=tokenizer, max_length=8)
    one = maker(Row("r", 0, ["a b"], {}), "", RNG)
    a, b, c = tokenizer.ids("a b c")
    assert one["data"].tolist() == [tokenizer.start, a, b, tokenizer.end]
    assert one["extra/segment"].tolist() == [0, 0, 0, 0]
    two = maker(Row("r", 0, ["a b", "c"], {}), "", RNG)
    assert two["data"].tolist() == [tokenizer.start, a, b, tokenizer.end, c, tokenizer.end]
    assert two["extra/segment"].tolist() == [0, 0, 0, 0, 1, 1]
    with pytest.raises(VlpipeError, match="row r has 3 texts, wanted one or two"):
        maker(Row("r", 0, ["a", "b", "c"], {}), "", RNG)
    score = Score()
    assert score(Row("r", 0, [], {"score": 2.5}), "", RNG)["data"] == np.float32(2.5)
    assert np.isnan(score(Row("r", 0, [], {"score": None}), "", RNG)["data"])
    with pytest.raises(VlpipeError, match="row r: score is inf, wanted a finite number"):
        score(Row("r", 0, [], {"score": float("inf")}), "", RNG)
