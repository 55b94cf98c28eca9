from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.model import Loaded
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import RESULTS, text
from vlpipe.stages.evaluate.nearest import Candidates, Nearest, Relevance, best, both_ways
from vlpipe.stages.evaluate.retrieval import RECALL_AT, Retrieval, hits, recalls

Rows = Callable[..., pa.Table]
WORDS = [
    "red",
    "blue",
    "green",
    "yellow",
    "small",
    "large",
    "circle",
    "square",
    "triangle",
    "star",
    "above",
    "below",
    "left",
    "right",
    "two",
    "dogs",
]


def captioned(image_rows: Rows, num_rows: int) -> pa.Table:
    """1 to 4 human captions per image, and a web text that must play no part."""
    draw = np.random.default_rng(0)
    captions = [[" ".join(draw.choice(WORDS, 4)) for _ in range(1 + i % 4)] for i in range(num_rows)]
    return image_rows([[text("web", "web"), *(text(c, "human") for c in several)] for several in captions])


def evaluate(stage: Retrieval, table: pa.Table, folder: Path) -> dict[str, tuple[float, int]]:
    out = run_gather(stage, [dataset(folder / "rows", table, shard_rows=7)], folder)
    assert out.table.schema == RESULTS
    return {r["name"]: (r["value"], r["num_rows"]) for r in out.table.to_pylist()}


def slow_reference(weights: Weights, table: pa.Table, k_test: int, rerank: bool) -> dict[str, float]:
    """One pair at a time and with Python's sort, as the paper describes it."""
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    texts = [
        (i, t["text"])
        for i, ts in enumerate(table["texts"].to_pylist())
        for t in ts
        if t["source"] == "human"
    ]
    images = [model.encode_image(torch.from_numpy(load_pixels([d], 16))) for d in table["image"].to_pylist()]

    @functools.cache
    def sim(image: int, words: str) -> float:
        ids, mask = tokenizer.encode([words], 24)
        return float(
            model.image_features(images[image])[0] @ model.text_features(model.encode_text(ids, mask))[0]
        )

    @functools.cache
    def final(image: int, words: str) -> float:
        ids, mask = tokenizer.encode([words], 24)
        return sim(image, words) + float(model.match_logits(ids, mask, images[image])[0, 1])

    def best(scored: list[tuple[float, int, int, str]]) -> list[int]:
        near = sorted(scored, key=lambda s: -s[0])[:k_test]  # stable: the earlier of equal ones first
        return [s[1] for s in (sorted(near, key=lambda s: -final(s[2], s[3])) if rerank else near)]

    with torch.no_grad():
        tr = [best([(sim(i, w), t, i, w) for t, (_, w) in enumerate(texts)]) for i in range(len(images))]
        ir = [best([(sim(i, w), i, i, w) for i in range(len(images))]) for _, w in texts]
    found = {f"tr@{k}": [any(texts[t][0] == i for t in b[:k]) for i, b in enumerate(tr)] for k in RECALL_AT}
    found |= {f"ir@{k}": [texts[t][0] in b[:k] for t, b in enumerate(ir)] for k in RECALL_AT}
    return {name: float(np.mean(hits)) for name, hits in found.items()}


@pytest.mark.slow
def test_both_stages_equal_a_slow_reference(weights: Weights, image_rows: Rows, tmp_path: Path) -> None:
    table = captioned(image_rows, 18)
    found = evaluate(Retrieval(model=weights, k_test=10, batch_size=16, max_text_length=24), table, tmp_path)
    itc, both = (slow_reference(weights, table, 10, rerank) for rerank in (False, True))
    assert {n: v for n, (v, _) in found.items()} == {f"itc_{n}": v for n, v in itc.items()} | both
    assert itc != both  # or re-ranking was not tested
    assert {n: c for n, (_, c) in found.items() if n.startswith("tr")} == {f"tr@{k}": 18 for k in RECALL_AT}
    assert found["ir@1"][1] == found["itc_ir@5"][1] == sum(1 + i % 4 for i in range(18))


def test_without_k_test_only_similarity_is_reported(
    weights: Weights, image_rows: Rows, tmp_path: Path
) -> None:
    table = captioned(image_rows, 6)
    found = evaluate(Retrieval(model=weights, k_test=0, batch_size=16, max_text_length=12), table, tmp_path)
    assert set(found) == {f"itc_{way}@{k}" for way in ("tr", "ir") for k in RECALL_AT}


def test_more_candidates_than_texts_is_the_whole_list(
    weights: Weights, image_rows: Rows, tmp_path: Path
) -> None:
    table = captioned(image_rows, 8)
    some, more = (
        evaluate(
            Retrieval(model=weights, k_test=k, batch_size=16, max_text_length=12), table, tmp_path / str(k)
        )
        for k in (100, 1000)
    )
    assert some == more
    assert slow_reference(weights, table, 100, rerank=True) == {
        n: v for n, (v, _) in some.items() if "itc" not in n
    }


def test_ranking_and_recall_in_closed_form() -> None:
    owner = np.array([0, 0, 1, 2])  # texts 0 and 1 belong to image 0
    sims = np.array([[0.1, 0.9, 0.5, 0.2], [0.8, 0.1, 0.7, 0.0], [0.3, 0.3, 0.3, 0.3]], np.float32)
    texts, images = best(sims, 4).order, best(sims.T, 4).order
    assert texts.tolist() == [[1, 2, 3, 0], [0, 2, 1, 3], [0, 1, 2, 3]]  # ties: the earlier text
    assert images.tolist() == [[1, 2, 0], [0, 2, 1], [1, 0, 2], [2, 0, 1]]
    found = {r["name"]: r["value"] for r in recalls(hits("", texts, images, Relevance(owner)))}
    assert found["tr@1"] == pytest.approx(1 / 3)  # image 0 by its second caption; 1 and 2 miss
    assert found["tr@5"] == 1
    assert found["ir@1"] == pytest.approx(3 / 4)
    two = best(sims, 2)
    more = np.array([[0, 5], [0, 1], [0, 0]], np.float32)
    assert Nearest(two.order, np.zeros_like(two.scores)).reranked(more).tolist() == [[2, 1], [2, 0], [0, 1]]


@pytest.mark.parametrize("block_values", [1, 60, 130, 10**6])
def test_blocks_give_what_the_whole_matrix_gives(block_values: int) -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.integers(-2, 3, (n, 3)).astype(np.float32) for n in (23, 60))  # many ties
    sims = images @ texts.T
    owner = rng.integers(0, 23, 60)
    own = owner[None] == np.arange(23)[:, None]
    found = both_ways(images, texts, 7, Relevance(owner), block_values)
    for one, whole, right in zip(found, (sims, sims.T), (own, own.T), strict=True):
        assert np.array_equal(one.order, best(whole, 7, right).order)
        assert np.array_equal(one.scores, best(whole, 7, right).scores)


@pytest.mark.parametrize("value", [1, 0, np.nan])
@pytest.mark.parametrize("block_values", [1, 60, 10**6])
def test_a_model_that_embeds_everything_alike_finds_nothing(value: float, block_values: int) -> None:
    """In order of rows, it would find the first ones: tr@10 of 13 images with the first ten texts."""
    images, texts, owner = (
        np.full((13, 3), value, np.float32),
        np.full((26, 3), value, np.float32),
        np.arange(26) // 2,
    )
    of_images, of_texts = both_ways(images, texts, 12, Relevance(owner), block_values)
    own = owner[of_images.order] == np.arange(13)[:, None], of_texts.order == owner[:, None]
    again = [
        near.reranked(np.zeros_like(near.scores), o)
        for near, o in zip((of_images, of_texts), own, strict=True)
    ]
    for orders in ((of_images.order, of_texts.order), again):
        assert {name: hit.mean() for name, hit in hits("", *orders, Relevance(owner)).items()} == {
            f"{way}@{k}": 0 for way in ("tr", "ir") for k in RECALL_AT
        }


@pytest.mark.parametrize("block_values", [1, 10**6])
def test_a_text_that_reads_like_the_images_own_is_right(block_values: int) -> None:
    """Images 0 and 1 have the caption `a`, image 2 has `b` twice, and image 3 is as near to `b` as to nothing else."""
    texts, owner = ["a", "a", "b", "b", "c"], np.array([0, 1, 2, 2, 3])
    images = np.array([[1, 0, 0], [0.9, 0, 0], [0, 1, 0], [0, 0.9, 0.1]], np.float32)
    feats = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    relevance = Relevance(owner, texts)
    of_images, of_texts = both_ways(images, feats, 5, relevance, block_values)
    found = hits("", of_images.order, of_texts.order, relevance)
    assert found["tr@1"].tolist() == [True, True, True, False]
    assert found["ir@1"].tolist() == [True, True, True, True, True]
    apart = Relevance(owner)
    of_images, of_texts = both_ways(images, feats, 5, apart, block_values)
    found = hits("", of_images.order, of_texts.order, apart)
    assert found["tr@1"].tolist() == [False, False, True, False]
    assert found["ir@1"].tolist() == [True, False, True, True, True]  # the second `a` is nearer to image 0


def test_captions_that_are_listed_as_right_for_other_images(
    weights: Weights, image_rows: Rows, tmp_path: Path
) -> None:
    table = captioned(image_rows, 12)
    texts = [t["text"] for several in table["texts"].to_pylist() for t in several]
    table = table.append_column("url", pa.array([f"{n}.jpg" for n in range(12)]))
    pairs = pa.Table.from_pylist([{"url": f"{n}.jpg", "text": text} for n in range(12) for text in texts])
    pq.write_table(pairs, tmp_path / "pairs.parquet")

    def found(file: str) -> dict[str, tuple[float, int]]:
        also = File(str(tmp_path / file))
        return evaluate(
            Retrieval(model=weights, k_test=10, max_text_length=12, also_relevant=also),
            table,
            tmp_path / file[:4],
        )

    assert {value for value, _ in found("pairs.parquet").values()} == {1}  # all belong to all
    pq.write_table(pairs.slice(0, 0), tmp_path / "none.parquet")
    with pytest.raises(VlpipeError, match="has no pair of an image that is evaluated"):
        found("none.parquet")


def test_candidates_whose_new_scores_are_equal_count_as_wrong() -> None:
    near = Nearest(np.array([[4, 2, 7]]), np.array([[3, 2, 1]], np.float32))
    more = np.array([[0, 1, 2]], np.float32)
    assert near.reranked(more).tolist() == [[4, 2, 7]]
    assert near.reranked(more, np.array([[True, False, False]])).tolist() == [[2, 7, 4]]


def test_each_candidate_has_its_logit_in_both_directions() -> None:
    rng = np.random.default_rng(0)
    sims = rng.random((9, 20)).astype(np.float32)
    of_images, of_texts = best(sims, 4), best(sims.T, 3)
    logits, pairs, asked = rng.random((9, 20)).astype(np.float32), Candidates(of_images, of_texts), 0
    for image in range(9):
        texts = list(pairs.of(image))
        assert texts == sorted(
            {*of_images.order[image]} | {t for t in range(20) if image in of_texts.order[t]}
        )
        pairs.put(image, {t: float(logits[image, t]) for t in texts})
        asked += len(texts)
    assert asked < 9 * 20
    assert np.array_equal(pairs.logits_of_images, np.take_along_axis(logits, of_images.order, 1))
    assert np.array_equal(pairs.logits_of_texts, np.take_along_axis(logits.T, of_texts.order, 1))


def test_memory_is_that_of_the_candidates() -> None:
    """2,000 images and 5,000 texts: 40 MB of similarities, never held together."""
    rng = np.random.default_rng(0)
    images, texts = (rng.random((n, 4), np.float32) for n in (2000, 5000))
    tracemalloc.start()
    try:
        both_ways(images, texts, 16, Relevance(np.arange(5000) % 2000), block_values=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 25e6
    finally:
        tracemalloc.stop()


def test_unreadable_and_captionless_images_are_left_out_and_named(
    weights: Weights, image_rows: Rows, tmp_path: Path
) -> None:
    table = captioned(image_rows, 12)
    images, texts = table["image"].to_pylist(), table["texts"].to_pylist()
    broken = image_rows([*texts, [text("a", "web")], [text("a", "human")]], [*images, images[0], b"GIF89a"])
    stage = Retrieval(model=weights, k_test=10, batch_size=16, max_text_length=12)
    out = run_gather(stage, [dataset(tmp_path / "rows", broken)], tmp_path)
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [
        ("row12", "filtered", "no_caption"),
        ("row13", "fault", "truncated"),
    ]
    whole = evaluate(stage, table, tmp_path / "whole")
    assert {r["name"]: r["value"] for r in out.table.to_pylist()} == {n: v for n, (v, _) in whole.items()}
    nothing = image_rows([[text("a", "web")]])
    with pytest.raises(
        VlpipeError, match=r"no readable image with a human text to evaluate on; .* no_caption"
    ):
        evaluate(stage, nothing, tmp_path / "nothing")


def test_what_cannot_work_is_said(weights: Weights) -> None:
    assert Retrieval(model=weights, k_test=4).preflight() == [
        "k_test must be 0 or at least 10, the largest k of recall@k, got 4"
    ]


def test_items_are_the_hits_that_the_recalls_are_means_of(
    weights: Weights, image_rows: Rows, tmp_path: Path
) -> None:
    table = captioned(image_rows, 9)
    stage = Retrieval(model=weights, k_test=10, batch_size=16, max_text_length=12)
    out = run_gather(stage, [dataset(tmp_path / "rows", table, shard_rows=4)], tmp_path)
    found = pq.read_table(out.artifacts / "items.parquet").to_pandas()
    assert set(found["value"]) == {0.0, 1.0}
    means = found.groupby("metric")["value"].mean().to_dict()
    assert means == pytest.approx({r["name"]: r["value"] for r in out.table.to_pylist()})
    of_images, of_captions = (found[found["metric"] == f"{way}@1"] for way in ("tr", "ir"))
    assert of_images["item"].tolist() == of_images["row"].tolist() == [f"row{i}" for i in range(9)]
    captions = [(f"row{i}#{k}", f"row{i}") for i in range(9) for k in range(1 + i % 4)]
    assert list(zip(of_captions["item"], of_captions["row"], strict=True)) == captions


def test_a_model_whose_embeddings_are_no_numbers_is_named(
    weights: Weights, image_rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loaded, "embed_texts", lambda self, ids, mask: torch.full((len(ids), 8), torch.nan))
    stage = Retrieval(model=weights, k_test=0, batch_size=16, max_text_length=12)
    with pytest.raises(VlpipeError, match="gives embeddings that are not finite numbers"):
        evaluate(stage, captioned(image_rows, 4), tmp_path)
