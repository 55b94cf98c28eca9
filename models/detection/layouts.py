"""The public Visual Genome checkpoints' names of our weights, read in both directions.

Two files hold the same network under the same detectron2 names: `faster_rcnn_from_caffe_attr.pkl` of
https://github.com/airsplay/py-bottom-up-attention (a pickle {"model": {name: array}}) and `pytorch_model.bin` of
unc-nlp/frcnn-vg-finetuned, which LXMERT in transformers used (it adds `num_batches_tracked`, which frozen norms have no use
for). Anchors are read when they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.weights.detectron2 import load_arrays
from vlpipe.models.weights.published import read_state

CELL_ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
_PARTS = (  # their prefix, ours
    ("proposal_generator.rpn_head.conv.", "rpn.conv."),
    ("proposal_generator.rpn_head.objectness_logits.", "rpn.objectness."),
    ("proposal_generator.rpn_head.anchor_deltas.", "rpn.offsets."),
    ("roi_heads.box_predictor.cls_score.", "head.classes."),
    ("roi_heads.box_predictor.bbox_pred.", "head.boxes."),
    ("roi_heads.box_predictor.cls_embedding.", "head.class_embedding."),
    ("roi_heads.box_predictor.fc_attr.", "head.attribute_hidden."),
    ("roi_heads.box_predictor.attr_score.", "head.attributes."),
)
_BLOCK = re.compile(r"(backbone\.res[234]|roi_heads\.res5)\.(\d+)\.(conv\d|shortcut)\.(norm\.)?(\w+)")
_OURS = re.compile(r"(backbone\.layer[123]|head\.layer4)\.(\d+)\.(conv\d|bn\d|downsample\.[01])\.(\w+)")


def to_ours(name: str) -> str | None:
    """Our name of a detectron2 one; None for a name that is none of this network's."""
    if name == CELL_ANCHORS:
        return "rpn.cell_anchors"
    if name.startswith("backbone.stem.conv1."):
        rest = name.removeprefix("backbone.stem.conv1.")
        return f"backbone.bn1.{rest[5:]}" if rest.startswith("norm.") else f"backbone.conv1.{rest}"
    for theirs, ours in _PARTS:
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    found = _BLOCK.fullmatch(name)
    if not found:
        return None
    stage, block, layer, norm, rest = found.groups()
    if layer == "shortcut":
        layer = f"downsample.{1 if norm else 0}"
    elif norm:
        layer = layer.replace("conv", "bn")
    number = int(stage[-1]) - 1
    return f"{'head' if number == 4 else 'backbone'}.layer{number}.{block}.{layer}.{rest}"


def to_detectron2(name: str) -> str:
    """The inverse of `to_ours`."""
    if name == "rpn.cell_anchors":
        return CELL_ANCHORS
    if name.startswith(("backbone.conv1.", "backbone.bn1.")):
        return name.replace("backbone.conv1.", "backbone.stem.conv1.").replace(
            "backbone.bn1.", "backbone.stem.conv1.norm."
        )
    for theirs, ours in _PARTS:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    found = _OURS.fullmatch(name)
    assert found, f"{name} is not a weight of FasterRcnn"
    stage, block, layer, rest = found.groups()
    number = int(stage[-1]) + 1
    their_stage = "roi_heads.res5" if number == 5 else f"backbone.res{number}"
    their_layer = {"downsample.0": "shortcut", "downsample.1": "shortcut.norm"}.get(layer, layer)
    if layer.startswith("bn"):
        their_layer = f"conv{layer[-1]}.norm"
    return f"{their_stage}.{block}.{their_layer}.{rest}"


def from_public(tensors: Mapping[str, Tensor]) -> FasterRcnn:
    """The detector of a checkpoint's tensors; sizes follow from them. ValueError lists what is missing or unknown."""
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        renamed = to_ours(name)
        if renamed is None:
            unknown.append(name)
        elif not name.endswith("num_batches_tracked"):
            ours[renamed] = value.float()
    if unknown or "head.classes.bias" not in ours:
        raise ValueError(
            "detector: the checkpoint is not a C4 Faster R-CNN of detectron2: "
            + (
                f"it has {len(unknown)} other tensors, such as {unknown[0]}"
                if unknown
                else "it has no tensors of the box head"
            )
        )
    model = FasterRcnn(_config_from(ours))
    ours.setdefault("rpn.cell_anchors", model.rpn.cell_anchors)
    try:
        model.load_state_dict(ours)
    except RuntimeError as error:
        raise ValueError(f"detector: the checkpoint does not fit the model ({error})") from error
    return model


def _config_from(ours: Mapping[str, Tensor]) -> DetectorConfig:
    """Depths, widths and numbers of classes as the tensors show them; the rest is the Visual Genome detector's."""
    depths = []
    for stage in ("backbone.layer1", "backbone.layer2", "backbone.layer3", "head.layer4"):
        blocks = {int(name.split(".")[2]) for name in ours if name.startswith(f"{stage}.")}
        depths.append(max(blocks, default=-1) + 1)
    attributes = ours.get("head.attributes.bias")
    return DetectorConfig(
        num_classes=len(ours["head.classes.bias"]) - 1,
        num_attributes=0 if attributes is None else len(attributes) - 1,
        depths=tuple(depths),
        width=len(ours["backbone.conv1.weight"]),
        rpn_width=len(ours["rpn.conv.bias"]),
    )


def load_resnet(model: FasterRcnn, tensors: Mapping[str, Tensor]) -> None:
    """Start `model` from an image classifier's weights under torchvision's names (resnet101); its own classes are left out.

    ValueError when they are not of this depth and width.
    """
    ours = model.state_dict()
    body = [name for name in ours if name.startswith(("backbone.", "head.layer4."))]
    wanted = {name: name.removeprefix("backbone.").removeprefix("head.") for name in body}
    bad = [t for o, t in wanted.items() if t not in tensors or tensors[t].shape != ours[o].shape]
    if bad:
        raise ValueError(f"init_resnet: {len(bad)} weights are missing or of another shape, such as {bad[0]}")
    model.load_state_dict({**ours, **{o: tensors[t] for o, t in wanted.items()}})


def load_public(path: str | Path) -> FasterRcnn:
    """From `*.pkl` (detectron2) or `pytorch_model.bin` (LXMERT's). No code in either file is run."""
    if Path(path).suffix == ".pkl":
        tensors = {name: torch.from_numpy(array) for name, array in load_arrays(path).items()}
    else:
        tensors = read_state(path)
    return from_public(tensors)
