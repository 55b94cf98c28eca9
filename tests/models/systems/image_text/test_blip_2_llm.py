"""BLIP-2's second stage against transformers, with a decoder (OPT) and with an encoder and a decoder (T5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, Blip2Config, Blip2ForConditionalGeneration

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts, through_a_folder
from tests.models.systems.image_text.test_blip_2 import FORMER, TINY, VISION, Blip2, greedy
from vlpipe.models import folder
from vlpipe.models.folder import copy_part
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.lm import Lm, next_tokens
from vlpipe.models.systems.image_text.blip_2 import Blip2Llm

WORDS, IMAGE, QUERIES = 51, 50, 5
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": WORDS,
    "hidden_size": 24,
    "word_embed_proj_dim": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 40,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "init_std": 0.2,
    "bos_token_id": 2,
    "eos_token_id": 2,
}
T5: dict[str, Any] = {
    "model_type": "t5",
    "vocab_size": WORDS,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
V1_1 = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
LLMS = {"opt": OPT, "t5": T5, "t5 v1.1": V1_1}


def theirs(llm: dict[str, Any]) -> Any:
    text = AutoConfig.for_model(**llm)
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**FORMER, "hidden_dropout_prob": 0.0},
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    return noisy(Blip2ForConditionalGeneration(config), but="nothing")


def blip_2_llm(llm: dict[str, Any]) -> Blip2Llm:
    sizes = {
        n: v for n, v in TINY.items() if n not in ("vocab_size", "pad", "start", "end", "dec", "embed_dim")
    }
    start, end = (0, 1) if llm["model_type"] == "t5" else (2, 2)
    model: Blip2Llm = noisy(
        Blip2Llm(llm=llm, vocab_size=WORDS - 1, start=start, end=end, **sizes), but="nothing"
    )
    return model


def their_loss(reference: Any, pixels: Tensor, text: Stream) -> Tensor:
    """In their way: ids of the image before the words; of T5, the prefix after them, and the text as labels."""
    ids, mask = text.data, text.mask
    assert mask is not None
    image = torch.full((len(ids), QUERIES), IMAGE)
    there = torch.ones_like(image)
    targets = ids.masked_fill(~mask, IGNORE)
    if not reference.config.text_config.is_encoder_decoder:
        targets[:, 0] = IGNORE
        labels = torch.cat([torch.full_like(image, IGNORE), targets], 1)
        found: Tensor = reference(
            pixel_values=pixels,
            input_ids=torch.cat([image, ids], 1),
            attention_mask=torch.cat([there, mask.long()], 1),
            labels=labels,
        ).loss
        return found
    return reference(  # type: ignore[no-any-return]
        pixel_values=pixels,
        input_ids=torch.cat([image, text.extra["prefix"]], 1),
        attention_mask=torch.cat([there, text.extra["prefix_mask"].long()], 1),
        labels=targets[:, 1:].contiguous(),
    ).loss


def texts_for(llm: dict[str, Any]) -> Stream:
    ids, mask = texts(WORDS - 1, 2)
    ids[:, 0] = 0 if llm["model_type"] == "t5" else 2
    prefix, prefix_mask = texts(WORDS - 1, 3)
    extra = {"prefix": prefix, "prefix_mask": prefix_mask} if llm["model_type"] == "t5" else {}
    return Stream(ids, mask, extra)


@pytest.mark.parametrize("name", LLMS)
def test_it_equals_transformers(tmp_path: Path, name: str) -> None:
    """The loss of the text alone, and the gradients; in float64, as T5's are large."""
    llm = LLMS[name]
    reference = theirs(llm)
    model = through_a_folder(reference, tmp_path / "theirs").double()
    assert isinstance(model, Blip2Llm)
    pixels, text = torch.randn(PIXELS).double(), texts_for(llm)
    reference.double()
    lm = Lm()
    lm.bind(model)
    term = lm(outputs(model, image=Stream(pixels), text=text))["lm"]
    loss, wanted = term.total / term.count, their_loss(reference, pixels, text)
    assert term.count == int((next_tokens(text) != IGNORE).sum())
    torch.testing.assert_close(loss.double(), wanted.double(), **TOLERANCE)
    loss.backward()
    wanted.backward()
    former = reference.qformer.encoder.layer
    for own, other in (
        (model.qformer.queries.grad, reference.query_tokens.grad),
        (model.projection.weight.grad, reference.language_projection.weight.grad),
        (
            model.qformer.layers[2].feed_forward.down.weight.grad,
            former[2].output_query.dense.weight.grad,
        ),
        (
            model.vision.patches.patch.weight.grad,
            reference.vision_model.embeddings.patch_embedding.weight.grad.flatten(1),
        ),
    ):
        torch.testing.assert_close(own, other, **TOLERANCE)
    for (n, own), (_, other) in zip(
        model.llm.net.named_parameters(), reference.language_model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(own.grad, other.grad, **TOLERANCE, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", LLMS)
def test_it_opens_in_transformers(tmp_path: Path, name: str) -> None:
    reference = theirs(LLMS[name])
    model = through_a_folder(reference, tmp_path / "theirs")
    model.export(tmp_path / "ours")
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "ours").eval()
    assert again.config.image_token_index == IMAGE
    for n, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[n], value), n


def test_an_export_needs_a_token_for_the_image() -> None:
    assert blip_2_llm(OPT).check_export() is None
    model = blip_2_llm({**OPT, "vocab_size": WORDS - 1})
    with pytest.raises(ValueError, match="set image_token"):
        model.check_export()
    with pytest.raises(ValueError, match="the tokenizer has 50 tokens, and the language model knows 49"):
        blip_2_llm({**OPT, "vocab_size": WORDS - 2})


@pytest.mark.parametrize("name", LLMS)
def test_captions_are_those_of_a_pass_over_the_whole_text(name: str) -> None:
    model = blip_2_llm(LLMS[name])
    assert model.text_rules.never[-1] == IMAGE  # no token of the tokenizer
    pixels = torch.randn(PIXELS)
    with torch.no_grad():
        tokens = outputs(model, image=Stream(pixels)).query_tokens
        assert sample(model, tokens, max_length=8) == greedy(model, pixels, 8)
        alone = beam(model, tokens[2:3], num_beams=3, max_length=6)
        assert beam(model, tokens, num_beams=3, max_length=6)[2:3] == alone
        one = sample(model, tokens, max_length=5, prompt_ids=[7, 8])
        assert [row[:5] for row in one] == [row[:5] for row in continued(model, pixels, [7, 8], 5)]


def continued(model: Blip2Llm, pixels: Tensor, prompt: list[int], length: int) -> list[list[int]]:
    ids = torch.tensor([[model.text_rules.first, *prompt]]).expand(len(pixels), -1)
    for _ in range(length):
        hidden = outputs(model, image=Stream(pixels), text=Stream(ids)).decoder_hidden
        logits = model.predict(hidden[:, -1])
        logits[:, model.text_rules.never] = -torch.inf
        ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    rows, end = ids[:, 1 + len(prompt) :].tolist(), model.text_rules.end
    return [row[: row.index(end)] if end in row else row for row in rows]


def test_the_first_stage_fills_the_second_one() -> None:
    """`init_parts` of the workflow: the image encoder and the queries' side of the Q-Former."""
    first, second = Blip2(**TINY), blip_2_llm(OPT)
    for part in ("vision", "qformer"):
        copy_part(second, first, part, part)
    pixels = torch.randn(PIXELS)
    out = outputs(first.eval(), image=Stream(pixels)).queries[0]
    torch.testing.assert_close(outputs(second, image=Stream(pixels)).query_tokens, second.projection(out))


@pytest.mark.parametrize("name", ["opt", "t5"])
def test_our_folder(tmp_path: Path, name: str) -> None:
    model = blip_2_llm(LLMS[name])
    folder.save(model, tmp_path)
    again = folder.load(tmp_path)
    for n, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[n], value), n


def test_words_see_the_image_and_no_later_words() -> None:
    model = blip_2_llm(OPT)
    pixels, text = torch.randn(PIXELS), texts_for(OPT)
    changed = text.data.clone()
    changed[:, 2] = 9
    one = outputs(model, image=Stream(pixels), text=text).decoder_hidden
    two = outputs(model, image=Stream(pixels), text=Stream(changed, text.mask)).decoder_hidden
    three = outputs(model, image=Stream(pixels + 1), text=text).decoder_hidden
    torch.testing.assert_close(one[:, :2], two[:, :2])
    assert not torch.allclose(one[:, 2], two[:, 2])
    assert not torch.allclose(one[:, 0], three[:, 0])


def test_padding_changes_nothing() -> None:
    model = blip_2_llm(OPT)
    lm = Lm()
    lm.bind(model)
    pixels, text = torch.randn(PIXELS), texts_for(OPT)
    assert text.mask is not None
    wide = Stream(F.pad(text.data.masked_fill(~text.mask, 8), (0, 3), value=6), F.pad(text.mask, (0, 3)))
    one, two = (lm(outputs(model, image=Stream(pixels), text=t))["lm"].total for t in (text, wide))
    torch.testing.assert_close(one, two, **TOLERANCE)
