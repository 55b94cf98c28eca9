"""VLMo against a second implementation, written from the paper and the released code: losses and gradients to 1e-5."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy
from tests.models.second_transformer import WORDS, linear, pairs
from tests.models.second_vlmo import HEADS, LAYERS, encode, second, word_loss
from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import EmbedsImages, FillsCodes, FillsWords, Matches, missing
from vlpipe.models.interface.image_capabilities import HasImageCodes
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.images.masked_codes import MaskedImageCodes
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.pairs.expert_itc import ExpertItc
from vlpipe.models.optim.frozen import freeze
from vlpipe.models.systems.image_text.vlmo import Vlmo
from vlpipe.stages.train.build import Net

SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "image_size": 16,
    "patch_size": 8,
    "width": 16,
    "layers": LAYERS,
    "vl_layers": 1,
    "heads": HEADS,
    "max_text_length": 12,
    "drop_path": 0.0,
    "dropout": 0.0,
    "num_codes": 7,
    "init_std": 0.2,
}
LANGUAGE = [
    "words.*",
    "modality.*",
    "blocks.*.experts.text.*",
    "word_head.*",
]  # the second stage trains these


def vlmo(**changes: Any) -> Vlmo:
    model: Vlmo = noisy(Vlmo(**SIZES | changes), but="temp")
    return model


def weights(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}


def net_of(model: Vlmo, *objectives: Any) -> Net:
    return Net(model, [(1.0, "mlm" if isinstance(o, MaskedLm) else "", o) for o in objectives]).train()


def pretraining(model: Vlmo) -> Net:
    return net_of(model, ExpertItc(), Itm(all_ranks=True), MaskedLm())


def values(net: Net, batch: Batch, seed: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {n: v.total / v.count for n, v in net(batch).items() if n in net.losses}


def compare(model: Vlmo, w: dict[str, Tensor], found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """The losses, and the gradient of each weight: none in one means none, or zeros, in the other."""
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], **TOLERANCE)
    sum(found.values()).backward()
    sum(wanted.values()).backward()
    for name, p in model.named_parameters():
        zero = torch.zeros_like(p)
        mine, theirs = (zero if g is None else g for g in (p.grad, w[name].grad))
        torch.testing.assert_close(mine, theirs, **TOLERANCE, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("attention", ["shared", "separate"])
@pytest.mark.parametrize("position", ["learned", "relative"])
def test_losses_and_all_gradients_of_pairs_are_those_of_the_second_implementation(
    position: str, attention: str
) -> None:
    scale = 0.1 if position == "relative" else None
    model = vlmo(position=position, attention=attention, layer_scale=scale)
    w, batch = weights(model), pairs(1)
    compare(model, w, values(pretraining(model), batch, 5), second(w, batch, 5))
    unused = {name for name, p in model.named_parameters() if p.grad is None}
    assert unused == {"mask_token", "code_head.weight", "code_head.bias"}


@pytest.mark.parametrize("position", ["learned", "relative"])
def test_codes_of_hidden_patches_train_vision_alone(position: str) -> None:
    model = vlmo(stage="images", position=position)
    w, masked = weights(model), torch.rand(5, 4) < 0.5
    masked[:, 0] = True
    codes = torch.randint(0, 7, (5, 4))
    image = Stream(
        torch.randn(5, 3, 16, 16), extra={"masked": masked, "codes": codes}, target={"masked": masked}
    )
    batch = Batch({"image": image}, same=torch.arange(5))
    logits = linear(w, "code_head", encode(w, None, image, "image")[:, 1:][masked])
    wanted = {"mim": F.cross_entropy(logits, codes[masked])}
    compare(model, w, values(net_of(model, MaskedImageCodes()), batch), wanted)
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert any("experts.image" in name for name in trained)
    assert any("attention.shared" in name for name in trained)
    assert not any("experts.text" in name or "experts.both" in name or "words" in name for name in trained)


def test_masked_words_of_the_second_stage_train_language_alone() -> None:
    """Self-attention, the experts of vision and what they share stay as they are."""
    model = vlmo(stage="texts", position="learned")
    freeze(model, train=LANGUAGE)
    w, batch = weights(model), pairs()
    alone = replace(batch, streams={"text": batch.streams["text"]})
    masked = batch.views["mlm"]["text"]
    wanted = word_loss(w, encode(w, masked, None, "text"), masked.target["ids"])
    found = values(net_of(model, MaskedLm()), alone)["mlm"]
    torch.testing.assert_close(found, wanted, **TOLERANCE)
    found.backward()
    wanted.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(name.startswith(("words.", "modality.", "word_head.")) or ".text." in name for name in trained)
    assert {f"blocks.{i}.experts.text.up.weight" for i in range(LAYERS)} <= trained
    for name in trained:
        torch.testing.assert_close(
            dict(model.named_parameters())[name].grad,
            w[name].grad,
            **TOLERANCE,
            msg=lambda text, n=name: f"{n}: {text}",
        )


def test_each_stage_has_what_it_trains() -> None:
    def lacking(stage: str) -> list[type]:
        wanted = [EmbedsImages, Matches, FillsWords, FillsCodes, HasImageCodes]
        return missing(vlmo(stage=stage), wanted)

    assert lacking("images") == [EmbedsImages, Matches, FillsWords]
    assert lacking("texts") == [EmbedsImages, Matches, FillsCodes, HasImageCodes]
    assert lacking("pairs") == [FillsCodes, HasImageCodes]
    assert [sorted(vlmo(stage=stage).streams()) for stage in ("images", "texts", "pairs")] == [
        ["image"],
        ["text"],
        ["image", "text"],
    ]


def test_a_stage_goes_on_with_the_weights_of_the_one_before(tmp_path: Path) -> None:
    """With larger images and shorter texts: biases of the distances that are left stay, and so do outputs of short texts."""
    before = vlmo(stage="texts", position="relative", max_text_length=20)
    folder.save(before, tmp_path)
    after = folder.load(tmp_path, stage="pairs", max_text_length=12).eval()
    assert after.relative.text.shape == (24, HEADS * LAYERS)
    batch = pairs()
    torch.testing.assert_close(Outputs(after, batch).text_tokens, Outputs(before, batch).text_tokens)
    learned = vlmo(position="learned")
    folder.save(learned, tmp_path / "learned")
    larger = folder.load(tmp_path / "learned", image_size=32)
    assert larger.positions.shape == (1, 17, 16)
    assert torch.equal(larger.positions[:, 0], learned.positions[:, 0])
    with pytest.raises(ValueError, match="the biases of the weights are of 20 tokens at most"):
        folder.load(tmp_path, max_text_length=30)


def test_separate_self_attention_of_equal_weights_is_the_shared_one() -> None:
    """So tokens of both modalities attend to each other in either; a change for patches then changes words of the pair."""
    shared, separate = vlmo(attention="shared"), vlmo(attention="separate")
    state = shared.state_dict()
    for name in separate.state_dict():
        parts = name.split(".")
        source = ".".join([*parts[:3], "shared", *parts[4:]]) if parts[2:3] == ["attention"] else name
        separate.state_dict()[name].copy_(state[source])
    batch = pairs()
    one, two = (Outputs(model, batch, grad=False) for model in (shared, separate))
    torch.testing.assert_close(one.fused["text"], two.fused["text"])
    torch.testing.assert_close(one.image_vl_feat, two.image_vl_feat)
    separate.blocks[0].attention["image"].v_bias.data.add_(1.0)
    three = Outputs(separate, batch, grad=False)
    assert not torch.allclose(three.fused["text"], two.fused["text"])
    assert torch.equal(three.text_feat, two.text_feat)


def test_negatives_are_never_of_the_same_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 0 and 3 show one picture; 40 draws of each kind. With all ranks, images are the rows' own, then the negatives."""
    model, same = vlmo(), [0, 1, 2, 0, 4]
    model.temp.data.fill_(0.5)
    seen: list[Any] = []
    paired = Outputs.paired
    monkeypatch.setattr(
        Outputs, "paired", lambda self, rows, **more: seen.append((rows, more)) or paired(self, rows, **more)
    )
    net, batch = net_of(model, Itm(all_ranks=True)), pairs(0, same)
    own = Outputs(model, batch, grad=False).image_embeds
    for seed in range(40):
        values(net, batch, seed)
    drawn: Counter[tuple[str, int, int]] = Counter()
    for rows, more in seen:
        given = more["given"]["image_embeds"][rows["image"]]
        pictures = [int((own == one).flatten(1).all(1).nonzero()[0]) for one in given]
        texts = rows["text"].tolist()
        assert pictures[:5] == pictures[10:] == texts[:5] == texts[5:10] == [*range(5)]
        drawn.update(("image", i, v) for i, v in enumerate(pictures[5:10]))
        drawn.update(("text", i, t) for i, t in enumerate(texts[10:]))
    assert all(same[i] != same[j] for _, i, j in drawn)
    assert len(drawn) == 2 * sum(same[i] != same[j] for i in range(5) for j in range(5))


@pytest.mark.parametrize("position", ["learned", "relative"])
def test_order_and_padding_change_nothing(position: str) -> None:
    """The temperature is so small that all draws take the hardest negatives."""
    model = vlmo(position=position)
    batch = hard_to_mistake(model)
    found = values(pretraining(model), batch)
    moved = values(pretraining(model), batch.rows(torch.tensor([2, 4, 0, 3, 1])))

    def wider(name: str, stream: Stream) -> Stream:
        if name != "text":
            return stream
        assert stream.mask is not None
        target = {k: F.pad(v, (0, 3), value=IGNORE) for k, v in stream.target.items()}
        ids = F.pad(stream.data.masked_fill(~stream.mask, 6), (0, 3), value=9)
        return Stream(ids, F.pad(stream.mask, (0, 3)), target=target)

    padded = values(pretraining(model), batch.map_streams(wider))
    for name, value in found.items():
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(padded[name], value, rtol=1e-4, atol=1e-5)


def hard_to_mistake(model: Vlmo) -> Batch:
    """A batch whose hardest negatives stand out at temperature 0.001, below the model's bound."""
    model.constrain = lambda: None  # type: ignore[method-assign]
    model.temp.data.fill_(1e-3)
    for k in range(400):
        batch = pairs(k)
        out = Outputs(model, batch, grad=False)
        sims = out.image_feat @ out.text_feat.t()
        best = [d.fill_diagonal_(-9).topk(2, dim=1).values for d in (sims.clone(), sims.t().clone())]
        if min((b[:, 0] - b[:, 1]).min() for b in best) > 0.02:
            return batch
    raise AssertionError("no such batch among 400")


def test_pictures_and_words_are_embedded_once_for_all_losses() -> None:
    """Patches once; words as they are, masked, and again beside other ranks' for matching."""
    model, asked = vlmo(), Counter[str]()
    for name in ("patch", "words"):
        model.get_submodule(name).register_forward_hook(lambda *_, n=name: asked.update([n]))
    values(pretraining(model), pairs())
    assert asked == {"patch": 1, "words": 3}


def test_temperatures_stay_above_their_bound() -> None:
    model = vlmo()
    model.temp.data.fill_(0.001)
    model.vl_temp.data.fill_(-1.0)
    model.constrain()
    assert model.temp.item() == model.vl_temp.item() == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stage": "videos"}, "stage is images, texts or pairs"),
        ({"attention": "none"}, "attention shared or separate"),
        ({"vl_layers": 3}, "vl_layers must be from 1 to layers - 1"),
        ({"image_size": 20}, "image_size a multiple"),
    ],
)
def test_what_no_model_can_be_is_said(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        vlmo(**changes)
