"""The detector: public key layouts, equal outputs under other names, losses in closed form, picking of regions."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlpipe.models.detection.anchors import cell_anchors
from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.faster_rcnn import FasterRcnn, Pick, config_of, pad
from vlpipe.models.detection.head import attribute_loss
from vlpipe.models.detection.layouts import from_public, load_public, to_detectron2, to_ours
from vlpipe.models.detection.matching import Target
from vlpipe.models.weights.detectron2 import load_arrays

NORM = ("weight", "bias", "running_mean", "running_var")
SMALL = DetectorConfig(
    num_classes=5,
    num_attributes=7,
    depths=(1, 1, 1, 1),
    width=8,
    rpn_width=16,
    anchor_sizes=(32, 64, 128, 256),
    pool_size=7,
    proposals=40,
)


def public_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of faster_rcnn_from_caffe_attr.pkl (ResNet-101-C4, 1600 classes, 400 attributes), as a table."""
    found: dict[str, tuple[int, ...]] = {}

    def conv(name: str, out: int, inp: int, side: int) -> None:
        found[f"{name}.weight"] = (out, inp, side, side)
        found.update({f"{name}.norm.{part}": (out,) for part in NORM})

    conv("backbone.stem.conv1", 64, 3, 7)
    for stage, depth, inner, before in (
        ("backbone.res2", 3, 64, 64),
        ("backbone.res3", 4, 128, 256),
        ("backbone.res4", 23, 256, 512),
        ("roi_heads.res5", 3, 512, 1024),
    ):
        for block in range(depth):
            inp = before if block == 0 else 4 * inner
            conv(f"{stage}.{block}.conv1", inner, inp, 1)
            conv(f"{stage}.{block}.conv2", inner, inner, 3)
            conv(f"{stage}.{block}.conv3", 4 * inner, inner, 1)
        conv(f"{stage}.0.shortcut", 4 * inner, before, 1)
    rpn, box = "proposal_generator.rpn_head", "roi_heads.box_predictor"
    for name, shape in (
        (f"{rpn}.conv", (512, 1024, 3, 3)),
        (f"{rpn}.objectness_logits", (12, 512, 1, 1)),
        (f"{rpn}.anchor_deltas", (48, 512, 1, 1)),
        (f"{box}.cls_score", (1601, 2048)),
        (f"{box}.bbox_pred", (6400, 2048)),
        (f"{box}.fc_attr", (512, 2304)),
        (f"{box}.attr_score", (401, 512)),
    ):
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return found | {
        f"{box}.cls_embedding.weight": (1601, 256),
        "proposal_generator.anchor_generator.cell_anchors.0": (12, 4),
    }


def randomised(config: DetectorConfig = SMALL, seed: int = 0) -> FasterRcnn:
    torch.manual_seed(seed)
    model = FasterRcnn(config).eval()
    for name, buffer in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            torch.nn.init.uniform_(buffer, 0.5, 1.5)
    torch.nn.init.normal_(model.head.classes.weight, std=1)
    torch.nn.init.normal_(model.head.boxes.weight, std=0.05)
    torch.nn.init.normal_(model.rpn.offsets.weight, std=0.1)
    torch.nn.init.normal_(model.rpn.objectness.weight, std=0.3)
    return model


def assert_same_regions(a: FasterRcnn, b: FasterRcnn) -> None:
    pixels = 40 * torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(1))
    one, two = a.eval().regions(pixels), b.eval().regions(pixels)
    for name in one.__dataclass_fields__:
        assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_names_and_shapes_are_those_of_the_visual_genome_checkpoint() -> None:
    with torch.device("meta"):
        model = FasterRcnn(DetectorConfig())
    ours = {to_detectron2(name): tuple(value.shape) for name, value in model.state_dict().items()}
    assert ours == public_shapes()
    assert len(ours) == 536
    assert sum(p.numel() for p in model.parameters()) == sum(
        math.prod(s) for n, s in ours.items() if ".norm." not in n and "anchors" not in n
    )
    for name in model.state_dict():
        assert to_ours(to_detectron2(name)) == name


@pytest.mark.parametrize("form", ["detectron2.pkl", "pytorch_model.bin"])
def test_renamed_weights_give_equal_outputs(form: str, tmp_path: Path) -> None:
    model = randomised()
    theirs = {to_detectron2(name): value for name, value in model.state_dict().items()}
    path = tmp_path / form
    if form.endswith(".pkl"):
        arrays = {name: value.numpy() for name, value in theirs.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
    else:
        theirs |= {
            f"{name.removesuffix('running_mean')}num_batches_tracked": torch.tensor(0)
            for name in theirs
            if name.endswith("running_mean")
        }
        torch.save(theirs, path)
    loaded = load_public(path)
    loaded.config = SMALL  # pooling and proposals do not show in a state dict
    loaded.head.config = loaded.rpn.config = SMALL
    assert_same_regions(model, loaded)


def test_anchors_come_from_the_checkpoint_where_it_has_them() -> None:
    theirs = {to_detectron2(n): v for n, v in randomised().state_dict().items()}
    name = to_detectron2("rpn.cell_anchors")
    theirs[name] = theirs[name] + 7.5
    assert torch.equal(from_public(theirs).rpn.cell_anchors, theirs[name])
    del theirs[name]
    published = cell_anchors((64, 128, 256, 512), (0.5, 1, 2))
    assert torch.equal(from_public(theirs).rpn.cell_anchors, published)


def test_a_foreign_checkpoint_is_named(tmp_path: Path) -> None:
    theirs = {to_detectron2(n): v for n, v in randomised().state_dict().items()}
    with pytest.raises(ValueError, match=r"it has 1 other tensors, such as roi_heads\.mask\.weight"):
        from_public({**theirs, "roi_heads.mask.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match="it has no tensors of the box head"):
        from_public({})
    del theirs["proposal_generator.rpn_head.conv.weight"]
    with pytest.raises(ValueError, match=r"(?s)the checkpoint does not fit the model.*rpn\.conv\.weight"):
        from_public(theirs)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile_was_here",)


def test_a_pickle_cannot_run_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": Hostile()}}))
    with pytest.raises(ValueError, match=r"must be a pickle of NumPy arrays.*requests posix\.system"):
        load_arrays(path)
    path.write_bytes(pickle.dumps({"model": {"a": np.array([print], dtype=object)}}))
    with pytest.raises(ValueError, match=r"requests builtins\.print"):
        load_arrays(path)
    path.write_bytes(pickle.dumps({"model": {"a": np.array(["text"], dtype=object)}}))
    with pytest.raises(ValueError, match="'a' has dtype object"):
        load_arrays(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="but contains a list"):
        load_arrays(path)
    assert not (tmp_path / "hostile_was_here").exists()


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = randomised()
    model.save(tmp_path)
    loaded = FasterRcnn.load(tmp_path)
    assert loaded.config == SMALL
    assert_same_regions(model, loaded)
    with pytest.raises(ValueError, match="detector: no parameter 'num_clases'; there are"):
        config_of({"num_clases": 3})
    with pytest.raises(ValueError, match="depths must be the numbers of blocks of 4 stages"):
        config_of({"depths": [1, 1]})


def test_resize_rule() -> None:
    config = DetectorConfig()
    assert config.resized(500, 375) == (800, 600)
    assert config.resized(375, 500) == (600, 800)
    assert config.resized(1000, 200) == (1000, 200)  # the long side is the limit
    assert config.resized(2000, 100) == (1000, 50)
    model = FasterRcnn(SMALL)
    grey = torch.tensor([122.7717, 115.9465, 102.9801])[:, None, None].expand(3, 2, 2)  # RGB of the BGR mean
    assert model.normalise(grey).abs().max() == 0


def test_padding_is_zeros_at_the_lower_right() -> None:
    batch, sizes = pad([torch.ones(3, 2, 5), torch.ones(3, 4, 3)])
    assert batch.shape == (2, 3, 4, 5)
    assert sizes == [(2, 5), (4, 3)]
    assert (batch[0].sum(), batch[1].sum(), batch[1, :, :, 3:].sum()) == (30, 36, 0)


def test_picking_keeps_between_least_and_most() -> None:
    model = randomised()
    pixels = 40 * torch.randn(3, 96, 128, generator=torch.Generator().manual_seed(1))
    boxes, _ = model.look(pixels)
    assert len(boxes) == 40
    free = model.regions(pixels, Pick(least=0, most=100))
    assert 0 < len(free.obj) < 40
    assert (free.obj_conf >= 0.2).all()
    assert len(model.regions(pixels, Pick(least=36, most=100)).obj) == 36
    assert len(model.regions(pixels, Pick(least=0, most=3)).obj) == 3
    torch.testing.assert_close(free.prob.sum(1), torch.ones(len(free.obj)))
    assert all(any(torch.equal(box, one) for one in boxes) for box in free.box)
    moved = model.regions(pixels, Pick(least=0, most=100, refine=True))
    assert torch.equal(moved.feat, free.feat)
    assert not torch.equal(moved.box, free.box)


def test_without_attributes(tmp_path: Path) -> None:
    model = randomised(config_of({**vars_of(SMALL), "num_attributes": 0}))
    found = model.regions(40 * torch.randn(3, 64, 64))
    assert set(found.attr.tolist()) == {-1}
    assert (
        from_public({to_detectron2(n): v for n, v in model.state_dict().items()}).config.num_attributes == 0
    )


def vars_of(config: DetectorConfig) -> dict[str, object]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_attribute_loss_closed_form() -> None:
    logits = torch.tensor([[0.0, 0, 0], [math.log(2), 0, 0], [5, 6, 7]])
    wanted = torch.tensor([[0, 1], [0, -1], [-1, -1]])  # two, one and no attributes
    first, second = -math.log(1 / 3), -math.log(2 / 4)
    assert attribute_loss(logits, wanted).item() == pytest.approx(0.5 * (first + second) / 2)
    assert attribute_loss(logits[2:], wanted[2:]).item() == 0


def target() -> Target:
    return Target(torch.tensor([[16.0, 16, 80, 80]]), torch.tensor([2]), torch.tensor([[3, 6, -1]]))


def test_rpn_losses_closed_form() -> None:
    """One anchor is the object, all others background: fewer than the samples, so all of them count."""
    model = FasterRcnn(SMALL)
    anchors = torch.tensor([[16.0, 16, 80, 76], [200, 200, 250, 250], [300, 0, 350, 50]])
    logits = torch.tensor([[1.0, -2, 0.5]], requires_grad=True)
    offsets = torch.zeros(1, 3, 4, requires_grad=True)
    found = model.rpn.losses(anchors, logits, offsets, [target()])
    softplus = F.softplus(torch.tensor([-1.0, -2, 0.5])).sum()
    assert found["rpn_objectness"].item() == pytest.approx(softplus.item() / 256)
    assert found["rpn_box"].item() == pytest.approx((2 / 60 + math.log(64 / 60)) / 256, rel=1e-5)
    found["rpn_box"].backward()
    assert offsets.grad is not None
    assert offsets.grad[0, 1:].abs().sum() == 0


def test_losses_reach_every_weight_and_only_the_own_classs_box() -> None:
    config = config_of({**vars_of(SMALL), "norm": "batch"})
    torch.manual_seed(0)
    model = FasterRcnn(config).train()
    losses = model(torch.randn(2, 3, 96, 96), [(96, 96), (64, 96)], [target(), target()])
    assert set(losses) == {
        "rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_attributes", "roi_accuracy"
    }  # fmt: skip
    sum(v for k, v in losses.items() if k != "roi_accuracy").backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    gradient = model.head.boxes.weight.grad
    assert gradient is not None
    by_class = gradient.unflatten(0, (5, 4)).abs().sum((1, 2))
    assert (by_class > 0).tolist() == [False, False, True, False, False]


def test_an_image_without_objects_is_all_background() -> None:
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long))
    losses = FasterRcnn(SMALL).train()(torch.randn(1, 3, 64, 64), [(64, 64)], [nothing])
    assert losses["rpn_box"] == losses["roi_box"] == losses["roi_attributes"] == 0
    assert losses["roi_class"] > 0


def test_regions_to_train_on_have_the_truth_of_their_own_object() -> None:
    """No proposal is near the second object, so its true box alone stands for it."""
    head = FasterRcnn(config_of({**vars_of(SMALL), "roi_samples": 8, "roi_object_share": 0.5})).head
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 60.0, 70.0]])
    truth = Target(boxes, torch.tensor([3, 1]), torch.tensor([[5, -1, -1], [2, 4, -1]]))
    proposals = torch.tensor([[1.0, 0.0, 21.0, 20.0], *[[80.0 + k, 0.0, 95.0 + k, 9.0] for k in range(20)]])
    found = head.sample(proposals, truth)
    num = len(found.true)
    assert len(found.boxes) == len(found.labels) == 8
    assert found.labels[num:].tolist() == [SMALL.num_classes] * (8 - num)  # background
    seen = {
        (*box, label): (true, attributes)
        for box, label, true, attributes in zip(
            *(part.tolist() for part in (found.boxes, found.labels, found.true, found.attributes)),
            strict=False,
        )
    }
    first, second = ([0.0, 0.0, 20.0, 20.0], [5, -1, -1]), ([40.0, 40.0, 60.0, 70.0], [2, 4, -1])
    assert seen == {
        (1.0, 0.0, 21.0, 20.0, 3): first,
        (0.0, 0.0, 20.0, 20.0, 3): first,
        (40.0, 40.0, 60.0, 70.0, 1): second,
    }
    many = torch.cat([boxes[:1] + 0.1 * k for k in range(10)])
    assert len(head.sample(torch.cat([many, proposals]), truth).true) == 4  # at most half are objects
