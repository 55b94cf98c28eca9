from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tests.stages.vision_language.test_local import inputs_of, rows_of
from vlpipe.pipeline.files import Weights
from vlpipe.stages.vision_language.batching import collated, in_groups
from vlpipe.stages.vision_language.decoding import Decoding, RowDraws, generated
from vlpipe.stages.vision_language.model import Arrays, load

Captioner = Callable[[str], Weights]


def test_draws_have_the_models_probabilities_and_belong_to_their_row() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, 0.5]])
    decoding = Decoding(temperature=0.7, top_k=4, top_p=0.95)
    num = 4000
    ids = torch.zeros(num, 1, dtype=torch.long)
    drawn = RowDraws(range(num), decoding)(ids, logits.expand(num, -1)).argmax(1)
    wanted = (logits / 0.7).softmax(1)[0]
    kept = wanted.argsort(descending=True)[:4]
    order = wanted[kept] / wanted[kept].sum()
    kept = kept[: int((order.cumsum(0) < 0.95).sum()) + 1]
    shares = torch.bincount(drawn, minlength=5) / num
    assert set(drawn.tolist()) == set(kept.tolist())
    assert shares[kept].numpy() == pytest.approx((wanted[kept] / wanted[kept].sum()).numpy(), abs=0.03)
    alone = RowDraws([17], decoding)(ids[:1], logits).argmax(1)
    assert alone.item() == drawn[17].item()


@pytest.mark.parametrize("kind", ["git", "blip2"])
def test_a_beam_search_is_the_librarys(
    kind: str, captioner: Captioner, image_rows: Callable[..., pa.Table]
) -> None:
    weights = captioner(kind)
    model, theirs = load(weights, "fp32"), AutoModelForImageTextToText.from_pretrained(weights.path).eval()
    (arrays,) = inputs_of(model, rows_of(image_rows, 1))
    batch = {name: torch.from_numpy(value) for name, value in arrays.items()}
    found = generated(
        model, collated([arrays], model.side, model.pad_id), Decoding(num_beams=3, max_tokens=5)
    )
    with torch.inference_mode():
        out = theirs.generate(**batch, num_beams=3, max_new_tokens=5, do_sample=False)
    assert found[0].tolist() == out[0][-found.shape[1] :].tolist()


def made(length: int, side: int) -> Arrays:
    return {
        "input_ids": np.zeros((1, length), np.int64),
        "pixel_values": np.zeros((1, 3, side, side), np.float32),
    }


def test_a_batch_has_one_shape_and_what_waits_is_bounded() -> None:
    rng = np.random.default_rng(0)
    items = [(at, made(int(rng.integers(1, 60)), int(rng.choice([4, 8])))) for at in range(200)]
    for side, most in (("left", 1 << 30), ("left", 5000), ("", 1 << 30)):
        seen: list[int] = []
        for batch, num_real in in_groups(iter(items), 16, side, most):
            assert len(batch) == 16
            assert len({each["pixel_values"].shape for _, each in batch}) == 1
            lengths = {each["input_ids"].shape[1] for _, each in batch}
            assert len({-(-n // 16) for n in lengths} if side else lengths) == 1
            seen += [at for at, _ in batch[:num_real]]
            assert collated([each for _, each in batch], side or "left", 7)["input_ids"].shape[0] == 16
        assert sorted(seen) == list(range(200))


def test_padding_is_on_the_side_of_the_model() -> None:
    one = {"input_ids": np.array([[1, 2]]), "attention_mask": np.array([[1, 1]])}
    left, right = (collated([one], side, 9) for side in ("left", "right"))
    assert left["input_ids"].tolist() == [[9] * 14 + [1, 2]]
    assert left["attention_mask"].tolist() == [[0] * 14 + [1, 1]]
    assert right["input_ids"].tolist() == [[1, 2] + [9] * 14]
    assert collated([one], "", 9)["input_ids"].tolist() == [[1, 2]]
