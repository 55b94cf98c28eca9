"""MobileNetV2 in transformers (`MobileNetV2ForImageClassification`), and Keras's weights with batch norm folded in."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlpipe.models.blocks.mobilenet_v2 import STAGES
from vlpipe.models.layouts.table import Entry, Layout, linear
from vlpipe.models.weights.published import fill

NUM_BLOCKS = sum(num for _, _, num, _ in STAGES)
FIXED = {  # values of a MobileNetV2Config that are the paper's network
    "num_channels": 3,
    "depth_divisible_by": 8,
    "min_depth": 8,
    "expand_ratio": 6.0,
    "output_stride": 32,
    "first_layer_is_expansion": True,
    "finegrained_output": True,
    "hidden_act": "relu6",
    "tf_padding": True,
}
# Keras's names of the parts of a block, the first of which has no number, and of the other layers
KERAS_PART = re.compile(r"(?:expanded_conv|block_(\d+))_(expand|depthwise|project)(?:_BN)?$")
KERAS = {"Conv1": "first", "bn_Conv1": "first", "Conv_1": "last", "Conv_1_bn": "last"}


def entries(c: Any, kind: str) -> Iterator[Entry]:
    """The table of all weights."""
    theirs = "mobilenet_v2"
    yield from _conv("backbone.first", f"{theirs}.conv_stem.first_conv")
    for i in range(NUM_BLOCKS):
        other = f"{theirs}.layer.{i - 1}" if i else f"{theirs}.conv_stem"
        for ours, name in (("expand", "expand_1x1"), ("depthwise", "conv_3x3"), ("project", "reduce_1x1")):
            if i or ours != "expand":
                yield from _conv(f"backbone.blocks.{i}.{ours}", f"{other}.{name}")
    yield from _conv("backbone.last", f"{theirs}.conv_1x1")
    yield from linear("classifier", "classifier")


def _conv(ours: str, theirs: str) -> Iterator[Entry]:
    yield Entry(f"{ours}.conv.weight", (f"{theirs}.convolution.weight",))
    for name in ("weight", "bias", "running_mean", "running_var"):
        yield Entry(f"{ours}.norm.{name}", (f"{theirs}.normalization.{name}",))


def read(config: Any) -> dict[str, Any]:
    """Our parameters from a MobileNetV2Config. Raises ValueError for a network other than the paper's."""
    other = [f"{name} {getattr(config, name)}" for name, v in FIXED.items() if getattr(config, name) != v]
    if other:
        raise ValueError(f"checkpoint: this MobileNetV2 is not the paper's: it sets {', '.join(other)}")
    return {
        "num_classes": config.num_labels,
        "image_size": config.image_size,
        "multiplier": config.depth_multiplier,
        "norm_eps": config.layer_norm_eps,
    }


def write(c: Any) -> Any:
    """A MobileNetV2Config of our config. Raises ValueError for a model without batch norm, which they lack."""
    from transformers import MobileNetV2Config

    if c.norm_eps is None:
        raise ValueError("export: transformers has no MobileNetV2 with batch norm folded in (norm_eps: null)")
    return MobileNetV2Config(
        num_labels=c.num_classes,
        image_size=c.image_size,
        depth_multiplier=c.multiplier,
        layer_norm_eps=c.norm_eps,
    )


def load_keras(cls: Any, path: Path, changes: Mapping[str, Any]) -> Any:
    """Returns the model of a .npz of Keras's weights, batch norm folded in. changes: replace parameters.

    A name ends in `MODEL/LAYER/OPERATION`, names of further operations may follow after a semicolon. Weights are as in
    TFLite: (out, height, width, in), of depthwise convolutions (1, height, width, channels). Raises ValueError for a file
    that cannot be read, and for weights missing or left over.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.ascontiguousarray(file[name], np.float32) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"weights: {path} cannot be read as an .npz of arrays: {error}") from error
    state: dict[str, Tensor] = {}
    for name, array in arrays.items():
        if (ours := _keras_name(name)) is not None:
            state[f"{ours}.{'weight' if array.ndim > 1 else 'bias'}"] = _turned(torch.from_numpy(array), ours)
    sizes = {"num_classes": len(state.get("classifier.bias", ())), "norm_eps": None}
    model = cls(**{**sizes, **changes})
    fill(model, state, str(path))
    return model


def _keras_name(name: str) -> str | None:
    """Returns our name of a layer; None for what holds no weights, such as the sizes of a padding."""
    layer = "".join(name.partition(";")[0].split("/")[1:2])
    if layer == "predictions":
        return "classifier"
    if layer in KERAS:
        return f"backbone.{KERAS[layer]}.conv"
    part = KERAS_PART.match(layer)
    return None if part is None else f"backbone.blocks.{part[1] or 0}.{part[2]}.conv"


def _turned(array: Tensor, ours: str) -> Tensor:
    if array.ndim != 4:
        return array
    return array.permute(3, 0, 1, 2) if ours.endswith("depthwise.conv") else array.permute(0, 3, 1, 2)


LAYOUT = Layout(
    classes={"classifier": "MobileNetV2ForImageClassification"},
    entries=entries,
    read=read,
    write=write,
    ignored=r"\.num_batches_tracked$",
)
