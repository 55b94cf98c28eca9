"""DALL-E against a second implementation: patterns, loss and gradients; padding; drawing with a cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import LENGTHS, TOLERANCE, noisy, outputs, texts
from vlpipe.models.generation.codes import draw_codes
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.next_codes import NextCodes
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.image_text.dalle import Dalle
from vlpipe.models.systems.image_text.dalle.layers import pattern_of, sees

TINY: dict[str, Any] = {
    "vocab_size": 37,
    "num_codes": 11,
    "grid": 4,
    "max_text_length": 12,
    "width": 24,
    "layers": 5,
    "heads": 3,
    "kernel": 3,
}


def model_of(**changes: Any) -> Dalle:
    return noisy(Dalle(**{**TINY, **changes}), but="nothing")


def streams() -> dict[str, Stream]:
    ids, mask = texts(37, 9)
    return {"text": Stream(ids, mask), "image": Stream(torch.randint(0, 11, (5, 16)))}


def of_image(pattern: str, place: int, grid: int, kernel: int) -> set[int]:
    """The places that a place sees, from rows and columns."""
    row, column = divmod(place, grid)
    if pattern == "row":
        return {k for k in range(place + 1) if place - k <= grid}
    if pattern == "column":
        return {k * grid + column for k in range(row + 1)}
    half = kernel // 2
    window = {
        (row - up) * grid + column + across for up in range(half + 1) for across in range(-half, half + 1)
    }
    return {k for k in window if 0 <= k <= place}


@pytest.mark.parametrize(("grid", "kernel"), [(4, 3), (6, 5), (3, 11)])
@pytest.mark.parametrize("pattern", ["row", "column", "convolution"])
def test_patterns_by_rows_and_columns(pattern: str, grid: int, kernel: int) -> None:
    num = 5
    found = sees(pattern, num, grid, kernel)
    for query in range(num + grid * grid):
        seen = {k for k in range(num + grid * grid) if found[query, k]}
        if query < num:
            assert seen == set(range(query + 1))
        else:
            wanted = {num + k for k in of_image(pattern, query - num, grid, kernel)}
            assert seen == set(range(num)) | wanted


def test_figure_11_of_the_paper() -> None:
    """Of a 4 x 4 image, the last place sees 5 places in a row, 4 in a column, and itself and 4 in a 3 x 3 window."""
    counts = {p: int(sees(p, 6, 4, 3)[-1, 6:].sum()) for p in ("row", "column", "convolution", "dense")}
    assert counts == {"row": 5, "column": 4, "convolution": 5, "dense": 16}


def test_the_order_of_patterns() -> None:
    """Appendix B.1: the first four layers are row, column, row, row; the last is a convolution."""
    found = [pattern_of(i, 64) for i in range(1, 65)]
    assert found[:8] == ["row", "column", "row", "row", "row", "column", "row", "row"]
    assert found[-1] == "convolution"
    assert found.count("column") == 16
    assert model_of().patterns == ["row", "column", "row", "row", "convolution"]
    assert set(model_of(attention="dense").patterns) == {"dense"}


def second(model: Dalle, ids: Tensor, mask: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of words (L - 1, V) and of codes (N, K) of one sample: queries and heads one by one."""
    state = dict(model.named_parameters())
    table = [
        state["words.words.weight"][i] if m else state["padding.weight"][t]
        for t, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]
    table += [state["padding.weight"][t] for t in range(len(ids), 12)]
    x = torch.stack(table) + state["words.positions.weight"]
    places = torch.stack([state["rows.weight"][k // 4] + state["columns.weight"][k % 4] for k in range(15)])
    x = torch.cat([x, state["codes.weight"][codes[:15]] + places])
    for layer in range(5):
        own = {
            n.removeprefix(f"layers.{layer}."): p
            for n, p in state.items()
            if n.startswith(f"layers.{layer}.")
        }
        h = F.layer_norm(x, (24,), own["norm1.weight"], own["norm1.bias"])
        q, key, v = (h @ own["qkv.weight"].t() + own["qkv.bias"]).chunk(3, -1)
        pattern = "convolution" if layer == 4 else "column" if layer == 1 else "row"
        mixed = []
        for at in range(27):
            seen = list(range(min(at + 1, 12)))
            seen += [] if at < 12 else sorted(12 + k for k in of_image(pattern, at - 12, 4, 3))
            heads = [slice(8 * k, 8 * k + 8) for k in range(3)]
            mixed.append(
                torch.cat(
                    [
                        (q[at, s] @ key[seen][:, s].t() / math.sqrt(8)).softmax(-1) @ v[seen][:, s]
                        for s in heads
                    ]
                )
            )
        x = x + torch.stack(mixed) @ own["out.weight"].t() + own["out.bias"]
        h = F.layer_norm(x, (24,), own["norm2.weight"], own["norm2.bias"])
        x = x + F.gelu(h @ own["up.weight"].t() + own["up.bias"]) @ own["down.weight"].t() + own["down.bias"]
    x = F.layer_norm(x, (24,), state["norm.weight"], state["norm.bias"])
    return model.word_head(x[: len(ids) - 1]), model.code_head(x[11:])


def test_losses_and_gradients_are_those_of_a_second_implementation() -> None:
    """1/8 of the mean over words, 7/8 of that over codes."""
    model, given = model_of(), streams()
    out = outputs(model, **given)
    lm, codes = Lm(), NextCodes()
    lm.bind(model)
    codes.bind(model)
    found: Any = {**lm(out), **codes(out)}
    ids, mask, true = given["text"].data, given["text"].mask, given["image"].data
    assert mask is not None
    assert int(found["lm"].count) == int((LENGTHS - 1).sum())
    assert found["next_code"].count == codes.counts(out.batch)["next_code"] == 80
    words, images = zip(*(second(model, ids[k], mask[k], true[k]) for k in range(5)), strict=True)
    of_words = F.cross_entropy(torch.cat(words), ids[:, 1:].masked_fill(~mask[:, 1:], -100).flatten())
    of_codes = F.cross_entropy(torch.cat(images), true.flatten())
    torch.testing.assert_close(found["lm"].total / found["lm"].count, of_words, **TOLERANCE)
    torch.testing.assert_close(found["next_code"].total / 80, of_codes, **TOLERANCE)
    ours = found["lm"].total / found["lm"].count / 8 + 7 * found["next_code"].total / 80 / 8
    names, parameters = zip(*model.named_parameters(), strict=True)
    mine = torch.autograd.grad(ours, parameters, retain_graph=True)
    other = torch.autograd.grad(of_words / 8 + 7 * of_codes / 8, parameters)
    for name, a, b in zip(names, mine, other, strict=True):
        torch.testing.assert_close(a, b, **TOLERANCE, msg=name)


def test_how_a_batch_is_padded_does_not_matter() -> None:
    model, given = model_of(), streams()
    text, image = given["text"], given["image"]
    assert text.mask is not None
    longer = Stream(F.pad(text.data, (0, 2), value=3), F.pad(text.mask, (0, 2)))
    first, second_ = outputs(model, **given), outputs(model, text=longer, image=image)
    assert torch.equal(first.next_code_hidden, second_.next_code_hidden)
    totals = []
    for out in (first, second_):
        objective = Lm()
        objective.bind(model)
        totals.append(objective(out)["lm"].total)  # type: ignore[union-attr]
    torch.testing.assert_close(totals[0], totals[1])
    junk = Stream(text.data.masked_fill(~text.mask, 5), text.mask)
    assert torch.equal(outputs(model, text=junk, image=image).next_code_hidden, first.next_code_hidden)


def test_padding_is_a_token_of_its_position() -> None:
    model, given = model_of(), streams()
    before = outputs(model, **given).next_code_hidden
    model.padding.weight.data[5] += 1.0
    after = outputs(model, **given).next_code_hidden
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [int(length) <= 5 for length in LENGTHS]


def test_no_place_sees_its_own_code_or_a_later_one() -> None:
    model, given = model_of(), streams()
    first = outputs(model, **given).next_code_hidden
    data = given["image"].data.clone()
    data[:, 6] = (data[:, 6] + 1) % 11
    other = outputs(model, text=given["text"], image=Stream(data))
    assert torch.equal(first[:, :7], other.next_code_hidden[:, :7])
    assert not torch.allclose(first[:, 7], other.next_code_hidden[:, 7])
    text = given["text"].data.clone()
    text[:, 2] = (text[:, 2] + 1) % 37
    changed = outputs(model, text=Stream(text, given["text"].mask), image=given["image"])
    assert torch.equal(changed.decoder_hidden[:, :2], outputs(model, **given).decoder_hidden[:, :2])


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(num)]


@pytest.mark.parametrize("attention", ["sparse", "dense"])
def test_drawing_with_a_cache_is_drawing_without(attention: str) -> None:
    model = model_of(attention=attention)
    text = streams()["text"]
    found = draw_codes(model, outputs(model, text=text), generators=generators(5), temperature=0.7)
    logits = model.predict_codes(outputs(model, text=text, image=Stream(found)).next_code_hidden) / 0.7
    draws = torch.stack([torch.rand(16, generator=g, dtype=torch.float64) for g in generators(5)])
    order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    at = (order.values.cumsum(-1) <= draws[:, :, None]).sum(-1, keepdim=True)
    assert torch.equal(order.indices.gather(2, at.clamp(max=10))[:, :, 0], found)
    few: Outputs = outputs(model, text=text.rows(slice(2)))
    few.batch = few.batch.rows(slice(2))
    assert torch.equal(draw_codes(model, few, generators=generators(2), temperature=0.7), found[:2])


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel an odd number, got 'sparse' and 4"):
        model_of(kernel=4)
    with pytest.raises(ValueError, match="attention is sparse or dense"):
        model_of(attention="full")
    assert model_of().streams() == {
        "text": {"use": "text:Text", "max_positions": 12},
        "image": {"use": "code_grid:CodeGrid", "num_codes": 11, "num_places": 16},
    }


def test_the_paper_s_size() -> None:
    """12 G parameters, 1,280 positions."""
    with torch.device("meta"):
        model = Dalle(vocab_size=16384)
    num = sum(p.numel() for p in model.parameters())
    assert 11.9e9 < num < 12.4e9
    assert model.num_text + model.num_places == 1280
