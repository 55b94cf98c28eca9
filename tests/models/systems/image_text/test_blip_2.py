"""BLIP-2's first stage against transformers, and, for what that lacks, a second implementation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from tests.models.parity import PIXELS, TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models import folder
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import EmbedsImageParts, Generates, missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.objectives.pairs.query_itc import QueryItc, similarities
from vlpipe.models.objectives.pairs.query_itm import QueryItm
from vlpipe.models.systems.image_text.blip_2 import Blip2

VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "initializer_range": 0.02,
}
FORMER: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 12,
}
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "pad": 0,
    "start": 1,
    "end": 2,
    "dec": 3,
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 24,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp": 40,
    "queries": 5,
    "width": 16,
    "layers": 3,
    "heads": 2,
    "max_text_length": 12,
    "embed_dim": 8,
    "dropout": 0.0,
}


def theirs() -> Any:
    config = Blip2Config(
        vision_config=VISION,
        qformer_config={**FORMER, "use_qformer_text_input": True},
        num_query_tokens=5,
        image_text_hidden_size=8,
    )
    return noisy(Blip2ForImageTextRetrieval(config), but="nothing")


def blip_2(**changes: Any) -> Blip2:
    model: Blip2 = noisy(Blip2(**TINY | changes), but="temp")
    return model


def grads_of(model: Any, reference: Any) -> list[tuple[Tensor, Tensor]]:
    """Of every kind of weight, ours and theirs."""
    former, text = reference.qformer.encoder.layer, reference.embeddings
    own = former[1].attention.attention
    cross = former[2].crossattention
    return [
        (model.qformer.queries.grad, reference.query_tokens.grad),
        (model.qformer.norm.weight.grad, reference.qformer.layernorm.weight.grad),
        (
            model.qformer.layers[1].attention.qkv.weight.grad,
            torch.cat([own.query.weight.grad, own.key.weight.grad, own.value.weight.grad]),
        ),
        (
            model.qformer.layers[2].cross.kv.weight.grad,
            torch.cat([cross.attention.key.weight.grad, cross.attention.value.weight.grad]),
        ),
        (model.qformer.layers[2].cross.norm.bias.grad, cross.output.LayerNorm.bias.grad),
        (model.qformer.layers[0].feed_forward.up.weight.grad, former[0].intermediate_query.dense.weight.grad),
        (model.text.feed_forward[0].down.weight.grad, former[0].output.dense.weight.grad),
        (model.text.words.words.weight.grad, text.word_embeddings.weight.grad),
        (model.text.words.positions.weight.grad, text.position_embeddings.weight.grad),
        (
            model.vision.patches.patch.weight.grad,
            reference.vision_model.embeddings.patch_embedding.weight.grad.flatten(1),
        ),
        (
            model.vision.encoder.blocks[1].qkv.bias.grad,
            reference.vision_model.encoder.layers[1].self_attn.qkv.bias.grad,
        ),
        (model.vision.encoder.norm.weight.grad, reference.vision_model.post_layernorm.weight.grad),
    ]


@pytest.mark.parametrize("matching", [False, True])
def test_it_equals_transformers(tmp_path: Path, matching: bool) -> None:
    """Similarities, matching logits, and the gradient of every kind of weight."""
    reference = theirs()
    model = through_a_folder(reference, tmp_path / "theirs")
    pixels, (ids, mask) = torch.randn(PIXELS), texts(60, 2)
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    wanted = reference(
        pixel_values=pixels,
        input_ids=ids,
        attention_mask=mask.long(),
        use_image_text_matching_head=matching,
    ).logits_per_image
    found = out.match if matching else similarities(out.image_feats, out.text_feat)
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    for own, other in grads_of(model, reference):
        torch.testing.assert_close(own, other, **TOLERANCE)


def test_it_opens_in_transformers(tmp_path: Path) -> None:
    reference = theirs()
    model = through_a_folder(reference, tmp_path / "theirs")
    assert missing(model, [EmbedsImageParts, Generates]) == [Generates]  # there is no word head
    model.export(tmp_path / "ours")
    again = Blip2ForImageTextRetrieval.from_pretrained(tmp_path / "ours").eval()
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    with pytest.raises(ValueError, match="CLIP's form"):
        blip_2(clip_vision=True).check_export()


def second_written(model: Blip2, image: Tensor, ids: Tensor) -> Tensor:
    """The second implementation: queries and words in one sequence, with the mask of the paper's figure 2."""
    former, num, width = model.qformer, 5, 16
    x = torch.cat([former.queries.expand(len(ids), -1, -1), model.text.words(ids)], 1)
    x = F.layer_norm(x, (width,), former.norm.weight, former.norm.bias, 1e-12)
    length = x.shape[1]
    sees = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(length):
            sees[i, j] = j < num if i < num else j <= i
    for layer, words in zip(former.layers, model.text.feed_forward, strict=True):
        heads = []
        for q, k, v in zip(*(part.chunk(2, -1) for part in layer.attention.qkv(x).chunk(3, -1)), strict=True):
            scores = (q @ k.transpose(1, 2) / 8**0.5).masked_fill(~sees, -1e30)
            heads.append(scores.softmax(-1) @ v)
        x = layer.attention.norm(x + layer.attention.out(torch.cat(heads, -1)))
        queries, text = x[:, :num], x[:, num:]
        if layer.cross is not None:
            queries = layer.cross(queries, layer.cross.keys_values(image))
        x = torch.cat([layer.feed_forward(queries), words(text)], 1)
    return x[:, num:]


def test_words_are_written_as_the_second_implementation_does() -> None:
    """Hidden states and gradients of the loss of writing; the first token is [DEC]."""
    model = blip_2()
    pixels, (ids, mask) = torch.randn(PIXELS), texts(60, 2)
    lm = Lm()
    lm.bind(model)
    assert lm.label_smoothing == 0.1
    out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
    term = lm(out)["lm"]
    loss = term.total / term.count
    decoded = ids.clone()
    decoded[:, 0] = 3
    hidden = second_written(model, model.vision(pixels), decoded)
    torch.testing.assert_close(out.decoder_hidden[mask], hidden[mask], **TOLERANCE)
    there = mask[:, 1:]
    logits = model.predict(hidden[:, :-1][there])
    wanted = F.cross_entropy(logits, ids[:, 1:][there], label_smoothing=0.1)
    torch.testing.assert_close(loss, wanted, **TOLERANCE)
    params = list(model.parameters())
    found = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    others = torch.autograd.grad(wanted, params, allow_unused=True)
    assert sum(g is not None for g in found) > 70
    for p, *pair in zip(
        params, found, others, strict=True
    ):  # the last outputs of the queries are read by nobody
        own, other = (torch.zeros_like(p) if grad is None else grad for grad in pair)
        torch.testing.assert_close(own, other, **TOLERANCE)


def test_queries_see_no_words_but_when_matched() -> None:
    model = blip_2()
    pixels, (ids, mask) = torch.randn(PIXELS), texts(60, 2)
    other = ids.clone()
    other[:, 2] = 9
    one, two = (outputs(model, image=Stream(pixels), text=Stream(x, mask)) for x in (ids, other))
    assert torch.equal(one.image_feats, two.image_feats)
    torch.testing.assert_close(one.decoder_hidden[:, :2], two.decoder_hidden[:, :2])
    assert not torch.allclose(one.decoder_hidden[:, 2], two.decoder_hidden[:, 2])
    assert not torch.allclose(one.match, two.match)
    changed = outputs(model, image=Stream(pixels + 1), text=Stream(ids, mask))
    assert torch.equal(one.text_feat, changed.text_feat)
    assert not torch.allclose(one.decoder_hidden[:, 0], changed.decoder_hidden[:, 0])


def test_padding_and_order_change_nothing() -> None:
    model = blip_2()
    lm, itc = Lm(), QueryItc()
    lm.bind(model)
    pixels, (ids, mask) = torch.randn(PIXELS), texts(60, 2)

    def values(pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        out = outputs(model, image=Stream(pixels), text=Stream(ids, mask))
        terms = itc(out)["itc"], lm(out)["lm"]
        return torch.stack([*(term.total / term.count for term in terms), out.match.sum()])

    found = values(pixels, ids, mask)
    wide = F.pad(ids.masked_fill(~mask, 8), (0, 2), value=6), F.pad(mask, (0, 2))
    torch.testing.assert_close(values(pixels, *wide), found, **TOLERANCE)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(values(pixels[order], ids[order], mask[order]), found, **TOLERANCE)


def greedy(model: Any, pixels: Tensor, length: int) -> list[list[int]]:
    """Each next token from a pass over the whole text so far."""
    ids = torch.full((len(pixels), 1), model.text_rules.first)
    for _ in range(length):
        text = Stream(ids, torch.ones_like(ids, dtype=torch.bool))
        hidden = outputs(model, image=Stream(pixels), text=text).decoder_hidden
        logits = model.predict(hidden[:, -1]).index_fill(1, torch.tensor(model.text_rules.never), -math.inf)
        ids = torch.cat([ids, logits.argmax(1, keepdim=True)], 1)
    end = model.text_rules.end
    return [row[: row.index(end)] if end in row else row for row in ids[:, 1:].tolist()]


def test_captions_are_those_of_a_pass_over_the_whole_text() -> None:
    model = blip_2()
    pixels = torch.randn(PIXELS)
    with torch.no_grad():
        tokens = model.vision(pixels)
        assert sample(model, tokens, max_length=8) == greedy(model, pixels, 8)
        assert len(beam(model, tokens, num_beams=2, max_length=6)) == 5


def test_the_best_query_counts() -> None:
    """The contrast, one pair at a time; rows 0 and 3 show one picture."""
    images = F.normalize(torch.randn(4, 3, 8), dim=-1)
    text = F.normalize(torch.randn(4, 8), dim=-1)
    batch = Batch(streams={}, same=torch.tensor([5, 6, 7, 5]))
    model = blip_2()
    for share in (False, True):
        out = Outputs.of_features(model, batch, {"image_feats": images, "text_feat": text})
        term = QueryItc(share=share)(out)["itc"]
        total = 0.0
        for way in range(2):
            for i in range(4):
                sims = [
                    max(float(q @ text[j if way == 0 else i]) for q in images[i if way == 0 else j]) / 0.07
                    for j in range(4)
                ]
                norm = math.log(sum(math.exp(s) for s in sims))
                right = [j for j in range(4) if j == i or (share and {i, j} == {0, 3})]
                for j in range(4):
                    target = 0.1 / 4 + (0.9 / len(right) if j in right else 0.0)
                    total -= target * (sims[j] - norm)
        assert term.total.item() == pytest.approx(total / 2, rel=1e-5)
        assert term.count == 4


def test_negatives_are_the_nearest_of_other_pictures() -> None:
    """With a temperature near 0; rows 0 and 3 show one picture, and never serve as each other's negative."""
    model = blip_2()
    model.temp.data.fill_(1e-4)
    pixels, (ids, mask) = torch.randn(PIXELS), texts(60, 2)
    same = torch.tensor([5, 6, 7, 5, 8])
    batch = Batch({"image": Stream(pixels), "text": Stream(ids, mask)}, same)
    out = Outputs(model, batch)
    sims = similarities(out.image_feats, out.text_feat)
    seen: list[dict[str, Tensor]] = []
    whole = out.paired

    def spied(rows: Any, **more: Any) -> Outputs:
        seen.append(rows)
        return whole(rows, **more)

    out.paired = spied  # type: ignore[method-assign]
    found = QueryItm()(out)
    assert found["itm"].count == 15
    other = sims.masked_fill(same[:, None] == same, -9)
    assert seen[0]["text"][10:].tolist() == other.argmax(1).tolist()
    assert seen[0]["image"][5:10].tolist() == other.argmax(0).tolist()


def test_our_folder_holds_the_word_head_too(tmp_path: Path) -> None:
    model = blip_2()
    folder.save(model, tmp_path)
    again = folder.load(tmp_path)
    assert not missing(again, [Generates])
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_defaults_are_those_of_the_published_model() -> None:
    """As many parameters as transformers' default configuration, but for the word head."""
    config = Blip2Config(qformer_config={"use_qformer_text_input": True, "vocab_size": 30523})
    with torch.device("meta"):
        ours = Blip2(vocab_size=30523, pad=0, start=101, end=102, dec=30522, generates=False)
        reference = Blip2ForImageTextRetrieval(config)
    assert sum(p.numel() for p in ours.parameters()) - 1 == sum(p.numel() for p in reference.parameters())
