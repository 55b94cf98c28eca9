"""ERNIE-ViL against a second implementation, row by row from the papers' formulas: outputs, losses, gradients."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.parity import TOLERANCE, noisy, outputs
from tests.models.second_regions import Parts
from vlpipe.models.interface.batch import IGNORE, Stream
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region_kl import RegionKl
from vlpipe.models.objectives.texts.scene_graph import SceneGraphWords
from vlpipe.models.systems.regions.ernie_vil import ErnieVil

SIZES: dict[str, Any] = {
    "vocab_size": 37,
    "feat_dim": 10,
    "num_objects": 8,
    "width": 24,
    "layers": 3,
    "heads": 3,
    "image_width": 16,
    "image_layers": 2,
    "image_heads": 2,
    "max_text_length": 12,
}
WORDS, REGIONS = torch.tensor([8, 5, 6, 3, 7]), torch.tensor([4, 1, 3, 2, 4])
NODES = ("object", "attribute", "relation")


@pytest.fixture
def model() -> ErnieVil:
    torch.manual_seed(0)
    found = noisy(ErnieVil(**SIZES), but="nothing")
    assert isinstance(found, ErnieVil)
    return found


def streams() -> dict[str, Stream]:
    draw = torch.Generator().manual_seed(1)
    text_mask, mask = torch.arange(8)[None] < WORDS[:, None], torch.arange(4)[None] < REGIONS[:, None]
    ids = torch.randint(1, 37, (5, 8), generator=draw).masked_fill(~text_mask, 0)
    kind = torch.randint(0, 4, (5, 8), generator=draw).masked_fill(~text_mask, 3)
    targets = {name: ids.masked_fill(kind != number, IGNORE) for number, name in enumerate(NODES)}
    targets |= {"match": torch.tensor([1, 0, 1, 0, 0])}
    feats, corners = torch.randn(5, 4, 10, generator=draw), torch.rand(5, 4, 4, generator=draw)
    corners = torch.cat([corners[..., :2] / 2, corners[..., :2] / 2 + corners[..., 2:] / 2], -1)
    masked = (torch.rand(5, 4, generator=draw) < 0.5) & mask
    masked[0], masked[1, 0] = torch.tensor([True, False, True, False]), True  # of row 1, all
    prob = torch.rand(5, 4, 8, generator=draw).softmax(-1)
    data = feats.masked_fill(masked[..., None], 0) * mask[..., None]
    regions = Stream(data, mask, {"box": corners, "prob": prob}, {"masked": masked, "feat": feats})
    return {"text": Stream(ids, text_mask, target=targets), "regions": regions}


class Reference(Parts):
    """The formulas, on the model's parameters, for one row without padding."""

    def cross(self, x: Tensor, context: Tensor, name: str, heads: int) -> Tensor:
        k, v = self.linear(context, f"{name}.kv").chunk(2, -1)
        mixed = self.mix(self.linear(x, f"{name}.q"), k, v, heads)
        return self.norm(x + self.linear(mixed, f"{name}.out"), f"{name}.norm")

    def hidden(self, given: dict[str, Stream], row: int) -> tuple[Tensor, Tensor]:
        text, regions = given["text"], given["regions"]
        ids, num = text.data[row, : WORDS[row]], int(REGIONS[row])
        words = self.p["words.words.weight"][ids] + self.p["words.positions.weight"][: len(ids)]
        words = self.norm(words + self.p["words.types.weight"][0], "words.norm")
        feats, corners = regions.data[row, :num], regions.extra["box"][row, :num]
        shown = [feats[at] for at in range(num) if not regions.target["masked"][row, at]]
        whole = sum(shown) / len(shown) if shown else torch.zeros(10)
        feats = torch.stack([whole, *feats])  # type: ignore[list-item]
        places = [[0.0, 0.0, 1.0, 1.0, 1.0]]
        places += [[*c, (c[2] - c[0]) * (c[3] - c[1])] for c in corners.tolist()]
        image = self.linear(feats, "regions.feat") + self.linear(torch.tensor(places), "regions.box")
        image = self.norm(image, "regions.norm")
        words = self.layer(words, "language.0", 3)
        for k in (0, 1):
            to_words = self.cross(words, image, f"bridges.{k}.to_words", 3)
            to_image = self.cross(image, words, f"bridges.{k}.to_image", 2)
            words = self.layer(self.feed_forward(to_words, f"bridges.{k}.words"), f"language.{k + 1}", 3)
            image = self.layer(self.feed_forward(to_image, f"bridges.{k}.image"), f"vision.{k}", 2)
        return words, image

    def transform(self, x: Tensor, name: str) -> Tensor:
        x = self.linear(x, f"{name}.dense")
        return self.norm(x * (1 + torch.erf(x / math.sqrt(2))) / 2, f"{name}.norm")

    def losses(self, given: dict[str, Stream]) -> dict[str, Tensor]:
        """Sums over all rows."""
        found = {name: torch.zeros(()) for name in (*NODES, "match", "kl")}
        for row in range(5):
            words, image = self.hidden(given, row)
            for name in NODES:
                for at, true in enumerate(given["text"].target[name][row, : WORDS[row]].tolist()):
                    if true != IGNORE:
                        logits = self.transform(words[at], "word_transform") @ self.p["words.words.weight"].T
                        logits = logits + self.p["word_bias"]
                        found[name] = found[name] + logits.logsumexp(0) - logits[true]
            pooled = torch.tanh(self.linear(words[0], "word_pooler.dense"))
            seen = self.linear(torch.tanh(self.linear(image[0], "image_pooler.dense")), "image_to_words")
            logits = self.linear(pooled * seen, "match_head")
            label = int(given["text"].target["match"][row])
            found["match"] = found["match"] + logits.logsumexp(0) - logits[label]
            for at in range(int(REGIONS[row])):
                if given["regions"].target["masked"][row, at]:
                    p = self.linear(self.transform(image[at + 1], "obj_head.0"), "obj_head.1").softmax(0)
                    q = given["regions"].extra["prob"][row, at]
                    found["kl"] = found["kl"] + (q * (q / p).log()).sum()
        return found


def test_hidden_states(model: ErnieVil) -> None:
    given = streams()
    out = outputs(model, **given)
    for row in range(5):
        words, image = Reference(model).hidden(given, row)
        torch.testing.assert_close(out.fused["text"][row, : WORDS[row]], words, **TOLERANCE)
        torch.testing.assert_close(out.fused["regions"][row, : REGIONS[row]], image[1:], **TOLERANCE)
        torch.testing.assert_close(out.both[1][row, 0], image[0], **TOLERANCE)


def test_losses_and_gradients(model: ErnieVil) -> None:
    given = streams()
    wanted = Reference(model).losses(given)
    out = outputs(model, **given)
    found: dict[str, Tensor] = {}
    for name in NODES:
        term = SceneGraphWords(node=name)(out)[f"scene_{name}"]
        assert int(term.count) == int((given["text"].target[name] != IGNORE).sum()) > 0
        found[name] = term.total
    found |= {"match": Match()(out)["match"].total, "kl": RegionKl()(out)["region_kl"].total}
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-4)
    ours, theirs = (
        torch.autograd.grad(torch.stack(list(losses.values())).sum(), list(model.parameters()))
        for losses in (found, wanted)
    )
    for (name, _), one, other in zip(model.named_parameters(), ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4, msg=name)


def test_padding_changes_nothing(model: ErnieVil) -> None:
    given = streams()
    wide = {
        "text": replace(
            given["text"],
            data=F.pad(given["text"].data, (0, 3), value=9),
            mask=F.pad(given["text"].mask, (0, 3)),  # type: ignore[arg-type]
        ),
        "regions": given["regions"],
    }
    first, second = (outputs(model, **one).match for one in (given, wide))
    torch.testing.assert_close(first, second, **TOLERANCE)


def test_what_it_does_not_do_is_named(model: ErnieVil) -> None:
    with pytest.raises(ValueError, match="predicts objects of regions, not 'attr'"):
        model.predict_regions(torch.zeros(1, 16), "attr")
    with pytest.raises(ValueError, match="layers must be at least image_layers = 2, got 1"):
        ErnieVil(**{**SIZES, "layers": 1})
    with pytest.raises(ValueError, match="node must be object, attribute, relation, got 'verb'"):
        SceneGraphWords(node="verb")  # type: ignore[arg-type]
