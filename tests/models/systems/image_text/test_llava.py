"""LLaVA against transformers: images as a whole and in tiles, conversations, adapters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models import folder
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.pairs.answer_lm import AnswerLm
from vlpipe.models.systems.image_text.llava import Llava
from vlpipe.stages.loading.makers.language.tiles import best_grid, order, tiles

WORDS, IMAGE, PATCHES = 51, 50, 16
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 200,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TINY: dict[str, Any] = {
    "llm": LLAMA,
    "vocab_size": WORDS - 1,
    "start": 1,
    "end": 2,
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 16,
    "vision_layers": 3,
    "vision_heads": 2,
    "max_text_length": 40,
}
GRIDS = [[1, 2], [2, 1], [2, 2], [1, 3], [3, 1]]


def theirs(tiled: bool = False) -> Any:
    vision = CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=44,
    )
    shared: dict[str, Any] = {
        "vision_config": vision.to_dict(),
        "text_config": AutoConfig.for_model(**LLAMA).to_dict(),
        "image_token_index": IMAGE,
    }
    if not tiled:
        return noisy(LlavaForConditionalGeneration(LlavaConfig(**shared)), but="nothing")
    points = [[32 * side for side in grid] for grid in GRIDS]
    config = LlavaNextConfig(**shared, image_grid_pinpoints=points)
    return noisy(LlavaNextForConditionalGeneration(config), but="nothing")


def llava(**changes: Any) -> Llava:
    model: Llava = noisy(Llava(**TINY | changes), but="nothing")
    return model


def conversation() -> Stream:
    """Five texts with an image before position 1 to 4, and some answers."""
    ids, mask = texts(WORDS - 1, 2)
    ids[:, 0] = 1
    learned = mask & (torch.arange(10)[None] % 5 >= 3)
    return Stream(
        ids,
        mask,
        {"image_at": torch.tensor([1, 2, 4, 1, 3])},
        {"ids": ids.masked_fill(~learned, IGNORE)},
    )


def their_inputs(text: Stream, counts: list[int]) -> dict[str, Tensor]:
    """Their way: a token for each part of the image among the words, and labels without it; padded on the right."""
    rows, labels = [], []
    assert text.mask is not None
    for b, count in enumerate(counts):
        at, length = int(text.extra["image_at"][b]), int(text.mask[b].sum())
        ids, wanted = text.data[b, :length], text.target["ids"][b, :length]
        rows.append(torch.cat([ids[:at], torch.full((count,), IMAGE), ids[at:]]))
        labels.append(torch.cat([wanted[:at], torch.full((count,), IGNORE), wanted[at:]]))
    padded = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": padded(rows, batch_first=True),
        "attention_mask": padded([torch.ones_like(row) for row in rows], batch_first=True),
        "labels": padded(labels, batch_first=True, padding_value=IGNORE),
    }


def compare(model: Llava, reference: Any, loss: Tensor, wanted: Tensor) -> None:
    """Losses, and the gradient of the projector, the image encoder and each weight of the language model."""
    torch.testing.assert_close(loss, wanted, **TOLERANCE)
    loss.backward()
    wanted.backward()
    body = reference.model
    for own, other in (
        (model.projector[0].weight.grad, body.multi_modal_projector.linear_1.weight.grad),
        (model.projector[2].bias.grad, body.multi_modal_projector.linear_2.bias.grad),
        (
            model.vision.patches.patch.weight.grad,
            body.vision_tower.embeddings.patch_embedding.weight.grad.flatten(1),
        ),
        (model.vision.pre_norm.weight.grad, body.vision_tower.pre_layrnorm.weight.grad),
    ):
        torch.testing.assert_close(own, other, **TOLERANCE)
    pairs = zip(model.llm.net.model.named_parameters(), body.language_model.named_parameters(), strict=True)
    for (n, own), (_, other) in pairs:
        torch.testing.assert_close(own.grad, other.grad, **TOLERANCE, msg=lambda m, n=n: f"{n}: {m}")
    torch.testing.assert_close(model.llm.net.lm_head.weight.grad, reference.lm_head.weight.grad, **TOLERANCE)


def test_it_equals_transformers(tmp_path: Path) -> None:
    reference = theirs()
    model = through_a_folder(reference, tmp_path / "theirs")
    assert (model.config.skip, model.config.grids, model.config.image_token) == (1, None, IMAGE)
    pixels, text = torch.randn(PIXELS), conversation()
    out = outputs(model, image=Stream(pixels), text=text)
    term = AnswerLm()(out)["lm"]
    given = their_inputs(text, [PATCHES] * 5)
    assert term.count == int((given["labels"] != IGNORE).sum())
    wanted = reference(pixel_values=pixels, **given).loss
    compare(model, reference, term.total / term.count, wanted)
    assert model.vision.encoder.blocks[2].qkv.weight.grad is None  # the last layer is not read


def pictures() -> list[Image.Image]:
    draw = np.random.default_rng(0)
    sizes = [(40, 64), (70, 31), (64, 64), (20, 75), (90, 88)]  # height, width
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def tiled(size: int = 32) -> tuple[Stream, list[Tensor], list[tuple[int, int]]]:
    """The stream that the maker makes, and tiles and picture sizes by themselves."""
    parts, orders, sizes = [], [], []
    for picture in pictures():
        grid = best_grid(picture.height, picture.width, [tuple(g) for g in GRIDS], size)  # type: ignore[misc]
        parts.append(torch.from_numpy(tiles(picture, grid, size)).float() / 100)
        orders.append(torch.from_numpy(order(picture.height, picture.width, grid, 4)))
        sizes.append((picture.height, picture.width))
    pad = torch.nn.utils.rnn.pad_sequence
    data = pad(parts, batch_first=True)
    mask = torch.arange(data.shape[1])[None] < torch.tensor([len(p) for p in parts])[:, None]
    return Stream(data, mask, {"order": pad(orders, batch_first=True)}), parts, sizes


def test_images_of_any_shape_equal_transformers(tmp_path: Path) -> None:
    """LLaVA-NeXT: other numbers of tiles and of tokens in each row."""
    reference = theirs(tiled=True)
    model = through_a_folder(reference, tmp_path / "theirs")
    assert model.config.grids == GRIDS
    (image, parts, sizes), text = tiled(), conversation()
    counts = [int((row > 0).sum()) for row in image.extra["order"]]
    assert len({len(p) for p in parts}) > 1
    assert len(set(counts)) > 2
    out = outputs(model, image=image, text=text)
    term = AnswerLm()(out)["lm"]
    wanted = reference(
        pixel_values=image.data, image_sizes=torch.tensor(sizes), **their_inputs(text, counts)
    ).loss
    compare(model, reference, term.total / term.count, wanted)
    torch.testing.assert_close(model.newline.grad, reference.model.image_newline.grad, **TOLERANCE)


def test_tiles_are_those_of_their_processor() -> None:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_grid_pinpoints=[[32 * side for side in grid] for grid in GRIDS],
        do_normalize=False,
        do_rescale=False,
    )
    for picture in pictures():
        found = processor(picture, return_tensors="np")["pixel_values"][0]
        grid = best_grid(picture.height, picture.width, [tuple(g) for g in GRIDS], 32)  # type: ignore[misc]
        own = tiles(picture, grid, 32)
        assert own.shape == found.shape
        assert np.abs(own[1:].astype(int) - found[1:]).max() <= 1, picture.size
        assert np.abs(own[0].astype(int) - found[0]).max() <= 1


@pytest.mark.parametrize("is_tiled", [False, True])
def test_it_opens_in_transformers(tmp_path: Path, is_tiled: bool) -> None:
    reference = theirs(is_tiled)
    model = through_a_folder(reference, tmp_path / "theirs")
    model.export(tmp_path / "ours")
    again = type(reference).from_pretrained(tmp_path / "ours").eval()
    assert again.config.image_token_index == IMAGE
    for n, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[n], value), n
    with pytest.raises(ValueError, match="`next` is for a model with `grids`"):
        model.check_export("llava" if is_tiled else "next")


def greedy(model: Llava, pixels: Tensor, prompt: list[int], length: int) -> list[list[int]]:
    """Each next token from a pass over the whole text so far; the image is after the start token and `before_image`."""
    before = list(model.config.before_image)
    ids = torch.tensor([[model.config.start, *before, *prompt]]).expand(len(pixels), -1)
    at = torch.full((len(pixels),), 1 + len(before))
    for _ in range(length):
        text = Stream(ids, None, {"image_at": at})
        hidden = outputs(model, image=Stream(pixels), text=text).decoder_hidden
        logits = model.predict(hidden[:, -1]).index_fill(1, torch.tensor(model.text_rules.never), -math.inf)
        ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    rows, end = ids[:, 1 + len(before) + len(prompt) :].tolist(), model.text_rules.end
    return [row[: row.index(end)] if end in row else row for row in rows]


@pytest.mark.parametrize("before", [(), (7, 9)])
@pytest.mark.parametrize("prompt", [[], [11, 12]])
def test_texts_are_those_of_a_pass_over_the_whole(before: tuple[int, ...], prompt: list[int]) -> None:
    model = llava(before_image=before)
    pixels = torch.randn(PIXELS)
    with torch.no_grad():
        tokens = outputs(model, image=Stream(pixels)).image_tokens
        assert sample(model, tokens, max_length=7, prompt_ids=prompt) == greedy(model, pixels, prompt, 7)
        alone = beam(model, tokens[2:3], num_beams=3, max_length=5, prompt_ids=prompt)
        assert beam(model, tokens, num_beams=3, max_length=5, prompt_ids=prompt)[2:3] == alone


def test_only_answers_are_learned_from_what_is_before_them() -> None:
    model, text, pixels = llava(), conversation(), torch.randn(PIXELS)
    out = outputs(model, image=Stream(pixels), text=text)
    found = AnswerLm()(out)
    hidden = out.decoder_hidden
    total, num = 0.0, 0
    for b in range(5):
        for t in range(10):
            if text.target["ids"][b, t] != IGNORE:
                total -= float(model.predict(hidden[b, t - 1]).log_softmax(-1)[text.data[b, t]])
                num += 1
    assert found["lm"].total.item() == pytest.approx(total, rel=1e-4)
    assert found["lm"].count == num
    ids = text.data.clone()
    ids[:, 2] = 9
    changed = outputs(model, image=Stream(pixels), text=Stream(ids, text.mask, text.extra)).decoder_hidden
    torch.testing.assert_close(changed[:, :1], hidden[:, :1])
    assert not torch.allclose(changed[:, 2], hidden[:, 2])


def test_pairs_take_their_images_tokens() -> None:
    """As evaluation swaps images, tiles included."""
    model = llava(grids=GRIDS)
    (image, _, _), text = tiled(), conversation()
    out = outputs(model, image=image, text=text)
    own, other = torch.arange(5), torch.tensor([3, 0, 4, 2, 1])
    swapped = out.paired({"text": own, "image": other}).decoder_hidden
    again = outputs(model, image=image.rows(other), text=text).decoder_hidden
    torch.testing.assert_close(swapped[text.mask], again[text.mask], **TOLERANCE)


def test_an_encoder_decoder_is_refused() -> None:
    t5 = {"model_type": "t5", "d_model": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="LLaVA's language model is a decoder, got t5"):
        llava(llm=t5)


LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def test_adapters_start_as_no_change_and_are_merged_into_an_export(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    plain = llava()
    folder.save(plain, tmp_path / "plain")
    model = folder.load(tmp_path / "plain", lora=LORA).eval()
    pixels, text = torch.randn(PIXELS), conversation()
    before = outputs(plain, image=Stream(pixels), text=text).decoder_hidden
    torch.testing.assert_close(outputs(model, image=Stream(pixels), text=text).decoder_hidden, before)
    adapters = [n for n, p in model.llm.named_parameters() if p.requires_grad]
    assert adapters
    assert all("lora_" in n for n in adapters)
    for n, p in model.named_parameters():
        if "lora_B" in n:
            p.data.normal_(std=0.3)
    after = outputs(model, image=Stream(pixels), text=text).decoder_hidden
    assert not torch.allclose(after, before)
    folder.save(model, tmp_path / "adapted")
    again = folder.load(tmp_path / "adapted").eval()
    torch.testing.assert_close(outputs(again, image=Stream(pixels), text=text).decoder_hidden, after)
    model.export(tmp_path / "merged")
    merged = folder.load(tmp_path / "merged").eval()
    assert merged.config.lora is None
    torch.testing.assert_close(
        outputs(merged, image=Stream(pixels), text=text).decoder_hidden, after, **TOLERANCE
    )
