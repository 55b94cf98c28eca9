"""Opens a dual encoder by the format of its folder."""

from __future__ import annotations

from vlpipe.models.folder import is_ours
from vlpipe.pipeline.files import Weights
from vlpipe.stages.dual_encoders import of_open_clip, of_this_package, of_transformers
from vlpipe.stages.dual_encoders.of_open_clip import is_open_clip
from vlpipe.stages.dual_encoders.towers import Encoders
from vlpipe.stages.inference.precision import Precision


def load(weights: Weights, precision: Precision) -> Encoders:
    """Returns the encoders of a folder of this package, of open_clip or of transformers, or of a hub id.

    Raises VlpipeError for a model without an image and a text encoder.
    """
    if is_ours(weights.path):
        return of_this_package.load(weights, precision)
    if is_open_clip(weights.path):
        return of_open_clip.load(weights, precision)
    return of_transformers.load(weights, precision)
