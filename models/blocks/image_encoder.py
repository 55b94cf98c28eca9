"""The image encoder of a system, chosen by name: `{use: "mobilenet_v2:MobileNetV2Tokens"}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from vlpipe.models.build import build

BELOW = "vlpipe.models.blocks"


def build_image_encoder(spec: Mapping[str, Any], *, image_size: int, width: int, **more: Any) -> nn.Module:
    """Returns the module that `spec` names: pixels (B, 3, S, S), and `first`, -> tokens (B, 1 + N, width), the first a
    summary of the image; with `first=True`, that one alone.

    spec: `use`, a class below `models.blocks` or on the Python path, and its parameters besides `image_size` and `width`.
    more: parameters that the system sets unless `spec` does. Raises ValueError for a class or parameter that is not there.
    """
    found: nn.Module = build({**more, **spec}, BELOW, image_size=image_size, width=width)
    return found
