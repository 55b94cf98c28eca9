"""Segmentation and detection heads on patches: layout by hand, losses against loops, what is assigned to which patch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from vlpipe.models.downstream.dense import PatchDetector, Segmenter
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.downstream.dense import (
    DetectPatches,
    Segment,
    assigned,
    boxes_of,
    centres,
    pair_iou,
)
from vlpipe.models.systems.images.mae import Mae

MAE: dict[str, Any] = {
    "use": "mae:Mae",
    "image_size": 16,
    "patch_size": 4,
    "width": 24,
    "layers": 1,
    "heads": 2,
    "decoder_width": 16,
    "decoder_layers": 1,
    "decoder_heads": 2,
}
BOXES = torch.tensor([[[0.0, 0, 0.5, 0.5], [0.1, 0.1, 0.4, 0.4]], [[0.5, 0.25, 1, 1], [0, 0, 0, 0]]])
THERE = torch.tensor([[True, True], [True, False]])


def batch(**streams: Stream) -> Batch:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return Batch({"image": Stream(pixels), **streams}, torch.arange(2))


def truth() -> Stream:
    return Stream(BOXES, THERE, {"label": torch.tensor([[2, 0], [1, 0]])})


def test_each_patch_tells_the_classes_of_its_own_pixels() -> None:
    torch.manual_seed(0)
    model = Segmenter(base=MAE, num_classes=3).eval()
    out = Outputs(model, batch())
    assert out.pixel_logits.shape == (2, 3, 16, 16)
    tokens = out.patches.view(
        2, 4, 4, 3, 4, 4
    )  # rows and columns of patches, classes, rows and columns of pixels
    for row, column in ((0, 0), (5, 9), (15, 2)):
        wanted = tokens[:, row // 4, column // 4, :, row % 4, column % 4]
        torch.testing.assert_close(out.pixel_logits[:, :, row, column], wanted)


def test_segmentation_is_the_cross_entropy_of_pixels_with_a_class() -> None:
    torch.manual_seed(0)
    model = Segmenter(base=MAE, num_classes=3).eval()
    classes = torch.randint(0, 3, (2, 16, 16))
    classes[:, :4] = IGNORE
    out = Outputs(model, batch(mask=Stream(classes)))
    term = Segment()(out)["segment"]
    logs = out.pixel_logits.log_softmax(1)
    pixels = [(b, y, x) for b in range(2) for y in range(4, 16) for x in range(16)]
    total = -sum(logs[b, classes[b, y, x], y, x] for b, y, x in pixels)
    torch.testing.assert_close(term.total, total)
    assert int(term.count) == len(pixels)


def test_patches_get_the_smallest_object_around_their_centre() -> None:
    """4 x 4 patches with centres at 1/8, 3/8, 5/8, 7/8; the middle of the second box, 1/4, is no further than half a patch
    from 1/8 and from 3/8."""
    has, which = assigned(BOXES, THERE, centres(16, torch.device("cpu")))
    found = {(b, n): int(which[b, n]) for b in range(2) for n in range(16) if has[b, n]}
    first = {(0, 4 * row + column): 1 for row in (0, 1) for column in (0, 1)}
    second = {
        (1, 4 * row + column): 0 for row in (2,) for column in (2, 3)
    }  # middle 3/4, 5/8; reach 1/8, 3/16
    assert found == first | second


def test_detection_against_a_loop_over_patches() -> None:
    torch.manual_seed(0)
    model = PatchDetector(base=MAE, num_classes=3).eval()
    out = Outputs(model, batch(boxes=truth()))
    terms = DetectPatches()(out)
    at = centres(16, torch.device("cpu"))
    has, which = assigned(BOXES, THERE, at)
    of_class, of_box = torch.zeros(()), torch.zeros(())
    for b in range(2):
        for n in range(16):
            logits, sides = out.patch_objects[b, n, :3], out.patch_objects[b, n, 3:]
            label = int(truth().extra["label"][b, which[b, n]]) if has[b, n] else -1
            for k in range(3):
                of_class = of_class - F.logsigmoid(logits[k] if k == label else -logits[k])
            if has[b, n]:
                x1, y1, x2, y2 = BOXES[b, which[b, n]]
                left, up, right, down = (
                    at[n, 0] - sides[0],
                    at[n, 1] - sides[1],
                    at[n, 0] + sides[2],
                    at[n, 1] + sides[3],
                )
                both = (min(x2, right) - max(x1, left)) * (min(y2, down) - max(y1, up))
                either = (x2 - x1) * (y2 - y1) + (right - left) * (down - up) - both
                of_box = of_box + 1 - both / either
    torch.testing.assert_close(terms["patch_class"].total, of_class)  # type: ignore[union-attr]
    torch.testing.assert_close(terms["patch_box"].total, of_box)  # type: ignore[union-attr]
    assert int(terms["patch_box"].count) == 6  # type: ignore[union-attr, arg-type]
    assert (out.patch_objects[..., 3:] > 0).all()


def test_pictures_without_objects() -> None:
    torch.manual_seed(0)
    model = PatchDetector(base=MAE, num_classes=3).eval()
    none = Stream(
        torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), {"label": torch.zeros(2, 0).long()}
    )
    terms = DetectPatches()(Outputs(model, batch(boxes=none)))
    assert float(terms["patch_box"].total) == 0  # type: ignore[union-attr]
    assert float(terms["patch_class"].total) > 0  # type: ignore[union-attr]


def test_boxes_and_overlaps_by_hand() -> None:
    at = torch.tensor([[0.5, 0.25]])
    box = boxes_of(at, torch.tensor([[[0.25, 0.125, 0.5, 0.25]]]))
    torch.testing.assert_close(box, torch.tensor([[[0.25, 0.125, 1.0, 0.5]]]))
    other = torch.tensor([[[0.25, 0.125, 0.625, 0.5]]])
    torch.testing.assert_close(pair_iou(box, other), torch.tensor([[0.5]]))
    assert float(pair_iou(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4))) == 0


def test_a_base_without_patches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="base: Bert has no `image_tokens` of patches"):
        PatchDetector(
            base={"use": "bert:Bert", "vocab_size": 9, "width": 8, "layers": 1, "heads": 1}, num_classes=2
        )
    model = Segmenter(base=MAE, num_classes=2)
    monkeypatch.setattr(Mae, "image_tokens", lambda self, out: torch.zeros(2, 6, 24))
    with pytest.raises(ValueError, match="6 image tokens are no square of patches"):
        _ = Outputs(model, batch()).patches
