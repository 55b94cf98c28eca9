from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
import torch

from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.caption.prompt_column import PromptColumn
from vlpipe.stages.caption.with_filter import CaptionAndFilter
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import text

Rows = Callable[..., pa.Table]


def texts_by_id(stage: Caption, table: pa.Table) -> dict[str, list[dict[str, Any]]]:
    out = run_map(stage, table).table
    return dict(zip(out["id"].to_pylist(), out["texts"].to_pylist(), strict=True))


def test_a_caption_is_appended_beside_what_was_there(weights: Weights, image_rows: Rows) -> None:
    table = image_rows([[text("a dog", "web")], []])
    found = texts_by_id(Caption(model=weights, batch_size=16), table)
    assert found["row0"][0] == text("a dog", "web")
    assert [t["source"] for t in found["row0"]] == ["web", "synth"]
    assert [len(ts) for ts in found.values()] == [2, 1]
    new = found["row1"][0]
    assert new["model"] == "weights-digest"
    assert new["text"]
    assert new["kept"] is None


def test_a_row_gets_the_same_captions_alone_in_any_company_and_order(
    weights: Weights, image_rows: Rows
) -> None:
    stage = Caption(model=weights, batch_size=16, num_captions=3)
    table = image_rows([[] for _ in range(23)])
    together = texts_by_id(stage, table)
    assert texts_by_id(stage, table.slice(4, 1)) == {"row4": together["row4"]}
    assert texts_by_id(stage, table.slice(3, 7)) == {f"row{i}": together[f"row{i}"] for i in range(3, 10)}
    assert texts_by_id(stage, table.take(list(range(22, -1, -1)))) == together
    assert len({t["text"] for ts in together.values() for t in ts}) > 20  # or the above says little


def test_it_is_nucleus_sampling_from_the_model_with_draws_by_row_and_number(
    weights: Weights, image_rows: Rows
) -> None:
    """Against the model called by hand, one row at a time."""
    table = image_rows([[] for _ in range(5)])
    stage = Caption(model=weights, batch_size=16, num_captions=2, seed=7, prompt="a", max_length=8)
    found = texts_by_id(stage, table)
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    for row, data in enumerate(table["image"].to_pylist()):
        for number in range(2):
            tokens = model.encode_image(torch.from_numpy(load_pixels([data], 16)))
            generator = torch.Generator().manual_seed(seed_of(7, f"row{row}", number))
            ids = sample(
                model,
                tokens,
                generators=[generator],
                top_p=0.9,
                min_length=1,
                max_length=8,
                prompt_ids=tokenizer.ids("a"),
            )
            assert found[f"row{row}"][number]["text"] == tokenizer.decode(ids[0])


@pytest.mark.parametrize("num_beams", [1, 3])
def test_it_is_a_beam_search_if_beams_are_set(weights: Weights, image_rows: Rows, num_beams: int) -> None:
    """Against the search called by hand, one row at a time."""
    table = image_rows([[] for _ in range(5)])
    stage = Caption(model=weights, batch_size=16, num_beams=num_beams, prompt="a", max_length=8)
    found = texts_by_id(stage, table)
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    lengths = {"min_length": 1, "max_length": 8}
    for row, data in enumerate(table["image"].to_pylist()):
        tokens = model.encode_image(torch.from_numpy(load_pixels([data], 16)))
        ids = beam(model, tokens, num_beams=num_beams, prompt_ids=tokenizer.ids("a"), **lengths)
        assert [t["text"] for t in found[f"row{row}"]] == [tokenizer.decode(ids[0])]


def test_seed_and_number_change_the_draws_and_the_digest_does_not(weights: Weights, image_rows: Rows) -> None:
    table = image_rows([[] for _ in range(8)])

    def captions(**changes: Any) -> list[str]:
        stage = replace(Caption(model=weights, batch_size=16), **changes)
        return [t["text"] for ts in texts_by_id(stage, table).values() for t in ts]

    first = captions()
    assert captions(seed=1) != first
    assert captions(num_captions=2)[::2] == first
    assert captions(num_captions=2)[1::2] != first
    assert captions(model=replace(weights, digest="another")) == first


def test_lengths_count_new_tokens(
    weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    original = Tokenizer.decode

    def counted(self: Tokenizer, ids: list[int]) -> str:
        lengths.append(len(ids))
        return original(self, ids)

    monkeypatch.setattr(Tokenizer, "decode", counted)
    stage = Caption(model=weights, batch_size=16, min_length=4, max_length=6, prompt="a red")
    texts_by_id(stage, image_rows([[] for _ in range(16)]))
    assert set(lengths) <= {4, 5, 6}
    texts_by_id(replace(stage, max_length=4), image_rows([[] for _ in range(16)]))
    assert set(lengths[16:]) == {4}


def test_an_empty_caption_is_kept_in_sight_but_not_for_training(weights: Weights) -> None:
    entry = Caption(model=weights)._entry("")
    assert (entry["text"], entry["source"], entry["kept"], entry["why"]) == ("", "synth", False, "empty")


def test_an_unreadable_image_is_a_reject_and_the_others_are_as_without_it(
    weights: Weights, image_rows: Rows
) -> None:
    table = image_rows([[] for _ in range(5)])
    images = table["image"].to_pylist()
    images[2] = b"<html>not found</html>"
    stage = Caption(model=weights, batch_size=16)
    out = run_map(stage, image_rows([[] for _ in range(5)], images))
    assert [(r.id, r.kind, r.why) for r in out.rejects] == [("row2", "fault", "not_an_image")]
    whole = texts_by_id(stage, table)
    assert out.table["texts"].to_pylist() == [whole[i] for i in out.table["id"].to_pylist()]
    nothing = run_map(stage, image_rows([[]], [b""]))
    assert nothing.table.num_rows == 0


def test_what_cannot_work_is_said_before_the_run(weights: Weights, image_rows: Rows) -> None:
    bad = Caption(model=weights, batch_size=20, top_p=0.0, min_length=9, max_length=3, num_captions=0)
    assert [p.split(",")[0] for p in bad.preflight()] == [
        "batch_size must be a positive multiple of 16",
        "top_p must be above 0 and at most 1",
        "min_length must be from 0 to max_length",
        "num_captions must be at least 1",
    ]
    beams = Caption(model=weights, num_beams=3, top_k=5, num_captions=2)
    assert beams.preflight() == [
        "num_beams is a beam search: top_k, num_captions would have no effect; leave it out"
    ]
    assert Caption(model=weights, num_beams=0).preflight() == ["num_beams must be at least 1 (greedy), got 0"]
    with pytest.raises(
        SchemaError, match=r"caption.generate reads column 'image', which its input does not have"
    ):
        Caption(model=weights).schema(
            pa.schema([("id", pa.string()), image_rows([[]]).schema.field("texts")])
        )
    with (
        pytest.raises(ValueError, match="got 40"),
        Caption(model=weights, max_length=40).open(),
    ):
        pass


def test_it_declares_what_it_reads_and_that_it_loads_weights() -> None:
    assert Caption.READS_HEAVY == ("image",)
    assert Caption.LOADS_WEIGHTS
    assert Caption.TORCH


PROMPTS = ["a red dog =", "a", "", None, "the dog and the cat and the dog =", "a"]


def with_prompts(table: pa.Table) -> pa.Table:
    return table.append_column("prompt", pa.array(PROMPTS, pa.string()))


@pytest.mark.parametrize("num_beams", [None, 1])
def test_a_caption_goes_on_from_the_rows_own_prompt(
    weights: Weights, image_rows: Rows, num_beams: int | None
) -> None:
    """Against the model called by hand, one row at a time."""
    table = with_prompts(image_rows([[] for _ in PROMPTS]))
    stage = Caption(
        model=weights, batch_size=16, row_prompts=True, max_prompt=4, max_length=8, num_beams=num_beams
    )
    assert stage.preflight() == []
    found = texts_by_id(stage, table)
    model, tokenizer = Blip.load(weights.path).eval(), Tokenizer.load(weights.path)
    for row, (data, prompt) in enumerate(zip(table["image"].to_pylist(), PROMPTS, strict=True)):
        tokens = model.encode_image(torch.from_numpy(load_pixels([data], 16)))
        ids = tokenizer.ids(prompt or "")[-4:]
        draws = {}
        if num_beams is None:
            draws = {"generators": [torch.Generator().manual_seed(seed_of(0, f"row{row}", 0))], "top_p": 0.9}
        (new,) = sample(model, tokens, min_length=1, max_length=8, prompt_ids=ids, **draws)
        assert [one["text"] for one in found[f"row{row}"]] == [tokenizer.decode(new)]
    assert len({len(tokenizer.ids(one or "")[-4:]) for one in PROMPTS}) >= 3
    alone = texts_by_id(stage, table.slice(4, 1))
    assert alone == {"row4": found["row4"]}


def test_what_row_prompts_need(weights: Weights, image_rows: Rows) -> None:
    stage = Caption(model=weights, row_prompts=True, prompt="a", compile=True, max_prompt=0)
    assert [one.split(":")[0].split(",")[0] for one in stage.preflight()] == [
        "row_prompts",
        "row_prompts",
        "max_prompt must be at least 1",
    ]
    with pytest.raises(SchemaError, match="reads column 'prompt', which its input does not have"):
        Caption(model=weights, row_prompts=True).schema(image_rows([[]]).schema)
    with pytest.raises(ValueError, match="and 20 prompt tokens"):
        run_map(Caption(model=weights, row_prompts=True, max_prompt=20), with_prompts(image_rows([[]] * 6)))
    both = CaptionAndFilter(model=weights, row_prompts=True).preflight()
    assert both == ["row_prompts: use caption.generate and filter.itm, one after the other"]


def test_prompts_are_a_column(image_rows: Rows) -> None:
    table = image_rows([[text("a dog", "web"), text("b", "synth")], [text("x", "web", kept=False, why="y")]])
    stage = PromptColumn(prompt="{alt_text} ({id}) = ")
    assert run_map(stage, table).table["prompt"].to_pylist() == ["a dog (row0) = ", " (row1) = "]
    assert PromptColumn(prompt="a").preflight() == ["prompt has no field such as {alt_text}"]
    assert "is not a name" in PromptColumn(prompt="{0}").preflight()[0]
    with pytest.raises(VlpipeError, match="which the rows lack"):
        PromptColumn(prompt="{titel}").schema(table.schema)
    with pytest.raises(SchemaError, match="have a column 'prompt' already"):
        stage.schema(stage.schema(table.schema))
