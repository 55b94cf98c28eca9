"""iGPT equals transformers' ImageGPT with the same weights; the masked form against a second implementation; drawing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling

from tests.models.parity import TOLERANCE, noisy, outputs, through_a_folder
from vlpipe.models import folder
from vlpipe.models.generation.codes import draw_codes
from vlpipe.models.interface.batch import Stream
from vlpipe.models.interface.capabilities import EmbedsImages, FillsCodes, missing
from vlpipe.models.interface.code_capabilities import DrawsCodes, PredictsNextCodes
from vlpipe.models.layouts.images.igpt import LAYOUT
from vlpipe.models.layouts.table import to_ours
from vlpipe.models.objectives.images.masked_codes import MaskedImageCodes
from vlpipe.models.objectives.images.next_codes import NextCodes
from vlpipe.models.systems.images.igpt import Igpt

TINY: dict[str, Any] = {"num_codes": 11, "image_size": 4, "width": 24, "layers": 2, "heads": 3}
PALETTE = {"use": "patches:PatchCentroids", "num_codes": 11, "patch_size": 1}


def theirs(**changes: Any) -> Any:
    sizes = {"vocab_size": 12, "n_positions": 16, "n_embd": 24, "n_layer": 2, "n_head": 3}
    config = ImageGPTConfig(**{**sizes, **changes}, attn_implementation="eager")
    return noisy(ImageGPTForCausalImageModeling(config), but="nothing")


def codes(num: int = 5) -> Tensor:
    return torch.randint(0, 11, (num, 16))


def test_it_equals_transformers(tmp_path: Path) -> None:
    """Logits, loss and all gradients; their loss leaves out the first pixel, so it is taken of their logits."""
    reference = theirs()
    model, true = through_a_folder(reference, tmp_path), codes()
    assert isinstance(model, Igpt)
    shifted = torch.cat([torch.full((5, 1), 11), true[:, :-1]], 1)
    logits = reference(input_ids=shifted).logits
    out = outputs(model, image=Stream(true))
    torch.testing.assert_close(model.predict_codes(out.next_code_hidden), logits, **TOLERANCE)
    objective = NextCodes()
    objective.bind(model)
    found: Any = objective(out)
    wanted = F.cross_entropy(logits.flatten(0, 1), true.flatten())
    assert found["next_code"].count == objective.counts(out.batch)["next_code"] == 80
    torch.testing.assert_close(found["next_code"].total / 80, wanted, **TOLERANCE)
    assert int(found["next_code_accuracy"].total) == int((logits.argmax(2) == true).sum())
    (found["next_code"].total / 80).backward()
    wanted.backward()
    table, named = list(LAYOUT.entries(model.config, "")), dict(reference.named_parameters())
    grads = to_ours(table, {name: p.grad for name, p in named.items()}, "")
    assert grads.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], **TOLERANCE, msg=name)


def test_a_folder_goes_back_and_forth(tmp_path: Path) -> None:
    reference = theirs()
    through_a_folder(reference, tmp_path / "theirs").export(tmp_path / "ours")
    again = ImageGPTForCausalImageModeling.from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_without_biases_theirs_are_zero(tmp_path: Path) -> None:
    """The released network has none; the default."""
    model = noisy(Igpt(**TINY))
    assert not any("bias" in name for name, _ in model.named_parameters())
    model.export(tmp_path)
    reference, true = ImageGPTForCausalImageModeling.from_pretrained(tmp_path).eval(), codes()
    shifted = torch.cat([torch.full((5, 1), 11), true[:, :-1]], 1)
    wanted = reference(input_ids=shifted).logits
    out = outputs(model, image=Stream(true))
    torch.testing.assert_close(model.predict_codes(out.next_code_hidden), wanted, **TOLERANCE)
    assert not reference.transformer.h[0].attn.c_attn.bias.any()


@pytest.mark.parametrize(
    "changes",
    [
        {"n_inner": 8},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_positions": 15},
        {"activation_function": "gelu"},
    ],
)
def test_another_network_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs(**changes).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="checkpoint: wanted"):
        folder.load(tmp_path)


def second_masked(model: Igpt, ids: Tensor, masked: Tensor) -> Tensor:
    """Logits (B, N, K) as the released code computes them with `bert`, one image and one head at a time."""
    state = dict(model.named_parameters())

    def normed(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[f"{name}.weight"]

    found = []
    for row, hidden in zip(ids, masked, strict=True):
        x = torch.stack(
            [
                torch.zeros(24) if bool(m) else state["words.weight"][int(i)]
                for i, m in zip(row, hidden, strict=True)
            ]
        )
        x = x + state["positions.weight"]
        for k in range(2):
            h = normed(x, f"layers.{k}.norm1")
            q, key, v = (h @ state[f"layers.{k}.qkv.weight"].t()).chunk(3, -1)
            heads = []
            for at in range(3):
                own = slice(8 * at, 8 * at + 8)
                heads.append((q[:, own] @ key[:, own].t() / 8**0.5).softmax(-1) @ v[:, own])
            x = x + torch.cat(heads, -1) @ state[f"layers.{k}.out.weight"].t()
            up = normed(x, f"layers.{k}.norm2") @ state[f"layers.{k}.up.weight"].t()
            x = x + (up / (1 + (-1.702 * up).exp())) @ state[f"layers.{k}.down.weight"].t()
        found.append(normed(x, "norm") @ state["code_head.weight"].t())
    return torch.stack(found)


def test_hidden_codes_are_predicted_as_by_a_second_implementation() -> None:
    model, true = noisy(Igpt(**TINY, causal=False)), codes()
    masked = torch.rand(5, 16) < 0.3
    masked[:, 2] = True
    stream = Stream(true, extra={"masked": masked}, target={"masked": masked})
    out = outputs(model, image=stream)
    logits = second_masked(model, true, masked)
    torch.testing.assert_close(model.predict_codes(out.code_hidden), logits, **TOLERANCE)
    term: Any = MaskedImageCodes()(out)["mim"]
    wanted = F.cross_entropy(logits[masked], true[masked])
    torch.testing.assert_close(term.total / term.count, wanted, **TOLERANCE)
    grads = [
        torch.autograd.grad(loss, list(model.parameters())) for loss in (term.total / term.count, wanted)
    ]
    for ours, other in zip(*grads, strict=True):
        torch.testing.assert_close(ours, other, **TOLERANCE)
    per_image: Any = MaskedImageCodes(mean="images")
    each = [F.cross_entropy(logits[row][masked[row]], true[row][masked[row]]) for row in range(5)]
    term = per_image(out)["mim"]
    torch.testing.assert_close(term.total / term.count, sum(each) / 5, **TOLERANCE)
    assert int(term.count) == int(per_image.counts(out.batch)["mim"]) == 5
    with pytest.raises(ValueError, match="mean must be patches or images, got 'rows'"):
        MaskedImageCodes(mean="rows")  # type: ignore[arg-type]
    other_colours = torch.where(masked, (true + 1) % 11, true)
    again = outputs(model, image=Stream(other_colours, extra={"masked": masked})).code_hidden
    assert torch.equal(again, out.code_hidden)


def test_no_place_sees_its_own_code_or_a_later_one() -> None:
    model, true = noisy(Igpt(**TINY)), codes(1)
    first = outputs(model, image=Stream(true)).next_code_hidden
    changed = true.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 11
    second = outputs(model, image=Stream(changed)).next_code_hidden
    assert torch.equal(first[:, :8], second[:, :8])
    assert not torch.allclose(first[:, 8], second[:, 8])


def test_codes_come_from_pictures_with_a_palette() -> None:
    model = noisy(Igpt(**TINY, codebook=PALETTE), but="codebook")
    model.codebook.centroids.data.uniform_()
    pixels = torch.randn(5, 3, 4, 4)
    out = outputs(model, image=Stream(pixels))
    assert torch.equal(out.image_codes, model.codebook(pixels))
    of_codes = outputs(model, image=Stream(out.image_codes))
    assert torch.equal(of_codes.next_code_hidden, out.next_code_hidden)
    assert out.image_feat.shape == (5, 24)
    torch.testing.assert_close(out.image_feat.norm(dim=1), torch.ones(5))
    assert model.streams()["image"] == {"use": "image:Image", "size": 4}
    column = Igpt(**TINY)
    assert column.streams()["image"] == {
        "use": "code_grid:CodeGrid",
        "size": 4,
        "num_codes": 11,
        "num_places": 16,
    }
    with pytest.raises(ValueError, match="it needs a palette"):
        assert outputs(column, image=Stream(pixels)).image_codes is None
    with pytest.raises(
        ValueError, match="wanted a codebook of 12 codes of single pixels, got 11 codes of 1 x 1"
    ):
        Igpt(**{**TINY, "num_codes": 12}, codebook=PALETTE)


def test_features_are_of_the_layer_that_is_named() -> None:
    """The normalised input of that layer, averaged (section 3.1 of the paper); the number of layers is the end."""
    model = noisy(Igpt(**TINY, feature_layer=1, codebook=PALETTE), but="codebook")
    out = outputs(model, image=Stream(codes()))
    x = model.layers[0](model._embedded(out), torch.ones(16, 16, dtype=torch.bool).tril())
    torch.testing.assert_close(out.image_feat, F.normalize(model.layers[1].norm1(x).mean(1), dim=-1))
    model.config.feature_layer = 2
    last = outputs(model, image=Stream(out.image_codes))
    torch.testing.assert_close(last.image_feat, F.normalize(last.place_hidden.mean(1), dim=-1))


def test_capabilities_are_those_of_its_form() -> None:
    needs = [PredictsNextCodes, DrawsCodes, FillsCodes, EmbedsImages]
    assert missing(Igpt(**TINY), needs) == [FillsCodes, EmbedsImages]
    assert missing(Igpt(**TINY, causal=False, codebook=PALETTE), needs) == [PredictsNextCodes, DrawsCodes]


def test_weights_start_as_in_the_released_code() -> None:
    model = Igpt(num_codes=64, image_size=16, width=64, layers=4, heads=4)
    assert not model.code_head.weight.any()
    stds = {
        "words.weight": 0.02,
        "positions.weight": 0.01,
        "layers.1.qkv.weight": 64**-0.5,
        "layers.1.out.weight": (64 * 4) ** -0.5,
        "layers.1.up.weight": 0.02,
    }
    for name, std in stds.items():
        assert float(model.get_parameter(name).detach().std()) == pytest.approx(std, rel=0.05), name


def generators(num: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(num)]


def test_drawing_with_a_cache_is_drawing_without() -> None:
    model = noisy(Igpt(**TINY))
    out = outputs(model, image=Stream(codes()))
    found = draw_codes(model, out, generators=generators(5))
    assert found.shape == (5, 16)
    draws = torch.stack([torch.rand(16, generator=g, dtype=torch.float64) for g in generators(5)])
    logits = model.predict_codes(outputs(model, image=Stream(found)).next_code_hidden)
    order = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    at = (order.values.cumsum(-1) <= draws[:, :, None]).sum(-1, keepdim=True)
    assert torch.equal(order.indices.gather(2, at.clamp(max=10))[:, :, 0], found)
    one = outputs(model, image=Stream(codes(1)))
    one.batch = one.batch.rows(slice(1))
    alone = draw_codes(model, one, generators=generators(1))
    assert torch.equal(alone, found[:1])


def test_given_codes_are_kept_and_the_likeliest_are_drawn() -> None:
    model, true = noisy(Igpt(**TINY)), codes()
    out = outputs(model, image=Stream(true))
    found = draw_codes(model, out, generators=generators(5), given=true[:, :6], top_k=1)
    assert torch.equal(found[:, :6], true[:, :6])
    logits = model.predict_codes(outputs(model, image=Stream(found)).next_code_hidden)
    assert torch.equal(logits.argmax(2)[:, 6:], found[:, 6:])
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="temperature must be above 0, top_p above 0"):
            draw_codes(model, out, generators=generators(5), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 generators for 5 rows"):
        draw_codes(model, out, generators=generators(2))
    with pytest.raises(ValueError, match="wanted 1 to 15 given codes, got 16"):
        draw_codes(model, out, generators=generators(5), given=true)
