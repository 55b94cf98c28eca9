"""What a model of images alone can do, as Protocols like those of `capabilities`."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

from vlpipe.models.interface.outputs import Outputs


@runtime_checkable
class Classifies(Protocol):
    """Tells the class of an image: logits (B, classes)."""

    def logits(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EmbedsViews(Protocol):
    """Embeds two views of each image in a space where dot products compare: (B, 2, E), unit norm."""

    def view_feats(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class EmbedsQueries(Protocol):
    """Embeds an image's first view as a query and its second as a key: (B, E) each, unit norm; E is its `projection_dim`."""

    projection_dim: int

    def query(self, out: Outputs) -> Tensor: ...
    def key(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class PredictsViews(Protocol):
    """Predicts the key of an image's other view: queries and keys of both views, (B, 2, E) each, unit norm."""

    def queries(self, out: Outputs) -> Tensor: ...
    def keys(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class HasImageCodes(Protocol):
    """Has the discrete codes of an image's places, row by row: (B, N) int64."""

    def image_codes(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class Segments(Protocol):
    """Tells the class of each pixel of an image: logits (B, classes, S, S)."""

    def pixel_logits(self, out: Outputs) -> Tensor: ...


@runtime_checkable
class FindsObjects(Protocol):
    """Finds objects from each patch of an image: (B, N, classes + 4), N patches in rows.

    Logits of the classes of the object around the patch's centre, none for no object, and the distances from the centre to
    its left, upper, right and lower side, as fractions of the image's side.
    """

    def patch_objects(self, out: Outputs) -> Tensor: ...
