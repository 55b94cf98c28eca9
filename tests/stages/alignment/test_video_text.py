"""Scores of texts and clips, and re-timing, in a space where the truth is known: word k is the k-th unit vector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models.video.s3dg import S3dG, TextModule
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.shard import HEAVY
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.alignment.clip_text_score import ClipTextScore, mean_within
from vlpipe.stages.alignment.retime import RetimeCues, best_shift, scores_at
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import Rule
from vlpipe.stages.features.s3d import features_type
from vlpipe.stages.features.windows import WindowFeats, read_windows
from vlpipe.stages.filter.rules import Rules
from vlpipe.stages.video.rows import CANDIDATE, CUES

WORDS = ("cut", "salt", "stir", "boil")
DIM = 512
Windows = Sequence[tuple[float, float, Any]]


@pytest.fixture(scope="module")
def s3dg(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The text side of an S3D-G that gives word k the k-th unit vector, and several words the sum of theirs."""
    folder = tmp_path_factory.mktemp("s3dg")
    side = TextModule(DIM, len(WORDS))
    with torch.no_grad():
        for layer in (side.fc1, side.fc2):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight.diagonal().fill_(1)
        side.word_embd.weight.zero_()
        side.word_embd.weight[1:].diagonal().fill_(1)
    state = {f"module.text_module.{name}": value for name, value in side.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, folder / "s3d_howto100m.pth")
    np.save(folder / "s3d_dict.npy", np.array(WORDS))
    model = Weights(path=str(folder / "s3d_howto100m.pth"), digest="digest")
    return {"model": model, "words": File(path=str(folder / "s3d_dict.npy"))}


def vector(**words: float) -> np.ndarray:
    found = np.zeros(DIM, np.float16)
    for word, value in words.items():
        found[WORDS.index(word)] = value
    return found


def with_windows(columns: dict[str, Any], windows: Sequence[Windows], told: str = "digest:unit") -> pa.Table:
    entries = [[{"start_s": s, "end_s": e, "feat": v} for s, e, v in some] for some in windows]
    field = pa.field("s3d", features_type(DIM), metadata={HEAVY: b"1"})
    table = pa.table({"id": [f"row{n}" for n in range(len(windows))], **columns})
    table = table.append_column("s3d_weights", pa.array([told] * len(windows), pa.string()))
    return table.append_column(field, pa.array(entries, field.type))


def clips(
    said: Sequence[Sequence[Any]], windows: Sequence[Windows], candidates: Any = None, **more: Any
) -> pa.Table:
    texts = [[t if isinstance(t, dict) else text(t, "asr") for t in some] for some in said]
    bags = [
        [{"start_s": 0.0, "end_s": 1.0, "text": t} for t in some] for some in candidates or [[]] * len(said)
    ]
    columns = {
        "texts": pa.array(texts, TEXTS),
        "candidates": pa.array(bags, pa.list_(CANDIDATE)),
        "start_s": pa.array([10.0] * len(said), pa.float64()),
        "end_s": pa.array([13.0] * len(said), pa.float64()),
    }
    return with_windows(columns, windows, **more)


def test_scores_are_plain_dot_products_with_the_mean_window(s3dg: dict[str, Any]) -> None:
    one = [
        (10, 11, vector(cut=2)),
        (11, 12, vector(cut=4, salt=1)),
        (12, 13, vector()),
        (13, 14, vector(boil=9)),
    ]
    two = [(9.0, 9.5, vector(stir=5)), (20, 21, vector(cut=7))]  # none in the clip: the nearest
    said = [["cut the salt", "boil", text("cut", "asr", kept=False, why="x")], ["stir"]]
    table = clips(said, [one, two], [["cut", "salt", "cut"], []])
    rows = run_map(ClipTextScore(**s3dg), table).table.to_pylist()
    assert rows[0]["align_score"] == [pytest.approx(2 + 1 / 3), 0, None]
    assert rows[0]["candidate_scores"] == [2, pytest.approx(1 / 3), 2]
    assert (rows[1]["align_score"], rows[1]["candidate_scores"]) == ([5], [])
    assert {row["align_weights"] for row in rows} == {"digest"}


def test_texts_are_those_of_the_whole_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = S3dG(num_words=len(WORDS)).eval()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    np.save(tmp_path / "words.npy", np.array(WORDS))
    feats = np.random.default_rng(0).normal(size=(2, DIM)).astype(np.float16)
    table = clips([["cut the salt"]], [[(10, 11, feats[0]), (11, 12, feats[1])]])
    with torch.inference_mode():
        said = net.text(torch.tensor([[1, 2] + [0] * 18]))[0].numpy()
    wanted = feats.astype(np.float64).mean(0) @ said.astype(np.float64)
    model = Weights(path=str(tmp_path / "net.pth"), digest="digest")
    stage = ClipTextScore(model=model, words=File(path=str(tmp_path / "words.npy")))
    assert run_map(stage, table).table["align_score"].to_pylist()[0] == [pytest.approx(wanted, rel=1e-5)]


def test_weights_without_a_text_side_are_refused(s3dg: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1)}, tmp_path / "net.pth")
    stage = replace(ClipTextScore(**s3dg), model=Weights(path=str(tmp_path / "net.pth"), digest="digest"))
    with pytest.raises(VlpipeError, match=r"has no text encoder \(text_module\.\*\): it cannot score texts"):
        run_map(stage, clips([["cut"]], [[(10, 11, vector(cut=1))]]))


def test_a_score_does_not_depend_on_the_company(s3dg: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    said = [[" ".join(rng.choice(WORDS, 3)) for _ in range(rng.integers(0, 4))] for _ in range(40)]
    windows = [
        [(10 + k, 11 + k, rng.normal(size=DIM).astype(np.float16)) for k in range(3)] for _ in range(40)
    ]
    table = clips(said, windows, said)
    whole = run_map(ClipTextScore(**s3dg), table).table.to_pylist()
    parts = [run_map(ClipTextScore(**s3dg), table.slice(n, 7)).table.to_pylist() for n in range(0, 40, 7)]
    assert [row for part in parts for row in part] == whole
    assert [r["align_score"] for r in whole] == [r["candidate_scores"] for r in whole]


def test_features_of_other_weights_are_refused(s3dg: dict[str, Any]) -> None:
    table = clips([["cut"]], [[(10, 11, vector(cut=1))]], told="other:unit")
    with pytest.raises(
        VlpipeError,
        match="'s3d' was computed with weights other:unit, but texts would be encoded with digest",
    ):
        run_map(ClipTextScore(**s3dg), table)


def test_features_that_are_no_embedding_are_refused(s3dg: dict[str, Any]) -> None:
    schema = clips([["cut"]], [[(10, 11, vector(cut=1))]]).schema
    at = schema.get_field_index("s3d")

    def told(how: bytes) -> pa.Schema:
        return schema.set(at, schema.field(at).with_metadata({HEAVY: b"1", b"windows": how}))

    stage = ClipTextScore(**s3dg)
    assert "align_score" in stage.schema(told(b'{"vector": "embedding", "l2": false}')).names
    with pytest.raises(
        SchemaError,
        match=r"set `vector: embedding` and `l2: false` in .* which has vector: pooled, l2: false",
    ):
        stage.schema(told(b'{"vector": "pooled", "l2": false}'))
    with pytest.raises(SchemaError, match="which has vector: embedding, l2: true"):
        stage.schema(told(b'{"vector": "embedding", "l2": true}'))
    with pytest.raises(SchemaError, match="reads column 'frame_feats', which no earlier step writes"):
        replace(stage, words=None).schema(schema)


def test_a_threshold_of_another_encoder_is_refused(s3dg: dict[str, Any]) -> None:
    table = clips([["cut"], ["salt"]], [[(10, 11, vector(cut=1))]] * 2)
    stage = ClipTextScore(**s3dg, encoder="s3dg")
    rule = Rule(column="align_score", op=">=", value=0.5, encoder="s3dg")
    out = run_map(Rules(rules=(rule,), sources=("asr",), drop_textless=True), with_schema(stage, table))
    assert (out.table["id"].to_pylist(), [r.id for r in out.rejects]) == (["row0"], ["row1"])
    other = Rules(rules=(replace(rule, encoder="clip"),))
    with pytest.raises(SchemaError, match="is for scores of clip, but 'align_score' has scores of s3dg"):
        other.schema(stage.schema(table.schema))


def with_schema(stage: ClipTextScore, table: pa.Table) -> pa.Table:
    return run_map(stage, table).table.cast(stage.schema(table.schema))


def test_words_must_be_those_of_the_weights(s3dg: dict[str, Any], tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.array(["cut"]))
    stage = ClipTextScore(model=s3dg["model"], words=File(path=str(tmp_path / "few.npy")))
    with pytest.raises(VlpipeError, match="has 1 words, but the weights have vectors of 4"):
        run_map(stage, clips([["cut"]], [[(10, 11, vector(cut=1))]]))


def test_windows_are_read_from_any_slice() -> None:
    windows = [[(n + k, n + k + 1, vector(cut=n + k)) for k in range(n)] for n in range(5)]
    column = with_windows({}, windows)["s3d"]
    for start in range(5):
        for row, n in zip(read_windows(column.slice(start, 2)), range(start, 5), strict=False):
            assert row.start_s.tolist() == list(range(n, n + n))
            assert row.feats[:, 0].tolist() == list(range(n, n + n))


# --- re-timing


def videos(cues: Sequence[Any], windows: Sequence[Windows], duration_s: float | None = None) -> pa.Table:
    full = [None if some is None else [cue(*c) if isinstance(c, tuple) else c for c in some] for some in cues]
    columns = {"cues": pa.array(full, CUES), "duration_s": pa.array([duration_s] * len(cues), pa.float64())}
    return with_windows(columns, windows)


def cue(start_s: float | None, end_s: float | None, said: str | None, **more: Any) -> dict[str, Any]:
    return {
        "start_s": start_s,
        "end_s": end_s,
        "text": said,
        "words": None,
        "source": "auto",
        "lang": None,
        **more,
    }


def shown(*what: str | None) -> Windows:
    """One window a second."""
    return [(k, k + 1, vector(**({w: 1} if w else {}))) for k, w in enumerate(what)]


COOKING = shown("cut", "cut", "cut", "salt", "salt", None, "stir", "stir", "stir", "stir")


def test_cues_move_to_where_they_are_shown(s3dg: dict[str, Any]) -> None:
    words = [{"start_s": 7.0, "end_s": 8.0, "word": "salt"}, {"start_s": 8.0, "end_s": 9.0, "word": "it"}]
    cues = [(3, 6, "cut"), cue(7.0, 9.0, "salt it", words=words), (6, 8, "stir"), (1, 3, "boil")]
    out = run_map(
        RetimeCues(**s3dg, max_shift_s=5, step_s=1), videos([cues], [COOKING], 10.0)
    ).table.to_pylist()[0]
    assert out["cue_shift_s"] == [-3, -4, 0, 0]
    assert out["cue_score"] == [1, 1, 1, 0]
    assert [(c["start_s"], c["end_s"]) for c in out["cues"]] == [(0, 3), (3, 5), (6, 8), (1, 3)]
    assert [(w["start_s"], w["end_s"]) for w in out["cues"][1]["words"]] == [(3, 4), (4, 5)]
    assert out["cues"][1]["text"] == "salt it"


def test_a_small_gain_is_no_reason_to_move(s3dg: dict[str, Any]) -> None:
    table = videos([[(2, 4, "cut")]], [COOKING], 10.0)  # 0.5 where it is, 1 a second earlier
    for gain, shift in ((0.4, -1), (0.5, 0)):
        row = run_map(RetimeCues(**s3dg, step_s=1, min_gain=gain), table).table.to_pylist()[0]
        assert row["cue_shift_s"] == [shift]


def test_cues_stay_within_the_video_and_the_limit(s3dg: dict[str, Any]) -> None:
    table = videos(
        [[(1, 4, "stir"), (7, 10, "cut")], [(0, 1, "boil")]], [COOKING, shown(*[None] * 9, "boil")], 10.0
    )
    near = run_map(RetimeCues(**s3dg, max_shift_s=4, step_s=1), table).table.to_pylist()
    assert near[0]["cue_shift_s"] == [4, 0]  # 5 would be best, a shift of -4 shows no cutting yet
    far = run_map(RetimeCues(**s3dg, max_shift_s=20, step_s=1), table).table.to_pylist()
    assert far[0]["cue_shift_s"] == [5, -7]
    assert far[1]["cue_shift_s"] == [9]


def test_all_cues_can_move_together(s3dg: dict[str, Any]) -> None:
    late = [(5, 8, "cut"), (8, 10, "salt"), (11, 15, "stir"), (5, 6, "boil")]  # all 5 s late; nothing boils
    windows = [*COOKING, *[(k, k + 1, vector()) for k in range(10, 20)]]
    row = run_map(
        RetimeCues(**s3dg, step_s=1, together=True), videos([late], [windows], 20.0)
    ).table.to_pylist()[0]
    assert row["cue_shift_s"] == [-5] * 4
    assert row["cue_score"] == [1, 1, 1, 0]


def test_what_cannot_be_moved_stays(s3dg: dict[str, Any]) -> None:
    odd = [(1, 2, None), (1, 2, " "), (None, 2, "cut"), (math.nan, 2, "cut"), (9, 9, "salt")]
    table = videos([None, [], odd], [COOKING] * 3)
    rows = run_map(RetimeCues(**s3dg, step_s=1), table).table.to_pylist()
    assert [(row["cues"], row["cue_shift_s"]) for row in rows[:2]] == [(None, []), ([], [])]
    assert rows[2]["cue_shift_s"] == [0, 0, 0, 0, -4]  # no time: the nearest window, of two the first
    assert rows[2]["cue_score"] == [None] * 4 + [1]
    assert [c["text"] for c in rows[2]["cues"]] == [None, " ", "cut", "cut", "salt"]


@pytest.mark.parametrize("seed", range(10))
def test_scores_against_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    starts = np.sort(rng.uniform(0, 50, 20)).astype(np.float32)
    windows = WindowFeats(starts, starts + np.float32(3), np.zeros((20, 1), np.float32))
    sims = rng.normal(size=20)
    start, end, duration = 20.0, 20 + float(rng.choice([0.0, 1.0, 6.0])), 45.0
    shifts = np.arange(-30, 31) * 1.0
    found = scores_at(windows, sims, start, end, shifts, duration)
    for shift, score in zip(shifts, found, strict=True):
        if start + shift < 0 or end + shift > duration:
            assert score == -np.inf
            continue
        middles = starts.astype(np.float64) + 1.5
        inside = [s for s, m in zip(sims, middles, strict=True) if start + shift <= m < end + shift]
        nearest = sims[np.abs(middles - ((start + end) / 2 + shift)).argmin()]
        assert score == pytest.approx(np.mean(inside) if inside else nearest)
        same = WindowFeats(windows.start_s, windows.end_s, sims[:, None].astype(np.float32))
        assert mean_within(same, start + shift, end + shift)[0] == pytest.approx(score, abs=1e-6)


def test_of_equals_the_smallest_shift_is_taken() -> None:
    shifts = np.array([-2.0, -1, 0, 1, 2])
    assert best_shift(np.array([1.0, 1, 0, 1, 1]), shifts, 0) == 1
    assert best_shift(np.array([1.0, 0, 1, 0, 1]), shifts, 0) == 2
    assert best_shift(np.array([0.0, 0, 0, 0, 1]), shifts, 0.5) == 4
