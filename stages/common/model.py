"""A trained model with its tokenizer, loaded for inference by what it can do, whatever its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.capabilities import EmbedsImageParts, missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.stage import Stage
from vlpipe.stages.inference.precision import Precision, dtype_of, placed

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Loaded:
    """A model in eval mode, its tokenizer (None for a model that reads no text), the device it is on, and its type."""

    model: Any
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype = torch.float32

    @property
    def is_on_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def image_size(self) -> int:
        """The side of the square input image in pixels."""
        return int(self.model.streams()["image"]["size"])

    def can(self, capability: type) -> bool:
        """Returns whether the model has a capability (of `models.interface.capabilities`)."""
        return not missing(self.model, [capability])

    def outputs(self, **streams: Stream) -> Outputs:
        """Returns the lazy outputs of these streams, moved to the device."""
        return Outputs(
            self.model, batch_of({name: s.map(self._moved) for name, s in streams.items()}), grad=False
        )

    def _moved(self, value: Tensor) -> Tensor:
        if value.is_floating_point():
            return value.to(self.device, non_blocking=True).to(self.dtype)
        return value.to(self.device)

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> what the model re-uses of an image in several pairs, (B, ...); else the pixels."""
        names = self.model.ENCODINGS.get("image", ())
        value: Tensor = (
            getattr(self.outputs(image=Stream(pixels)), names[0]) if names else self._moved(pixels)
        )
        return value

    @torch.inference_mode()
    def embed_images(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> embeddings (B, E), unit norm."""
        value: Tensor = self.outputs(image=Stream(pixels)).image_feat
        return value

    @torch.inference_mode()
    def embed_image_parts(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) -> embeddings (B, Q, E) of a model that embeds each image several times, else (B, E)."""
        if not self.can(EmbedsImageParts):
            return self.embed_images(pixels)
        value: Tensor = self.outputs(image=Stream(pixels)).image_feats
        return value

    @torch.inference_mode()
    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask (B, L) -> embeddings (B, E), unit norm."""
        value: Tensor = self.outputs(text=Stream(ids, mask.bool())).text_feat
        return value

    @torch.inference_mode()
    def match(self, ids: Tensor, mask: Tensor, images: Tensor, rows: Tensor | None = None) -> Tensor:
        """Logits (B, 2) of [no match, match]. rows (B,): which of `encode_images` each text takes; None: its own."""
        text = Stream(ids, mask.bool()).map(self._moved)
        index = torch.arange(len(ids), device=self.device)
        names = self.model.ENCODINGS.get("image", ())
        given = {names[0]: images} if names else {}
        streams = {"text": text, **({} if names else {"image": Stream(images)})}
        out = Outputs(self.model, batch_of(streams), grad=False)
        pairs = {"text": index, "image": index if rows is None else rows}
        value: Tensor = out.paired(pairs, given=given).match
        return value


def model_of_step(weights: Weights | None, stages: Mapping[str, Stage]) -> Any:
    """Returns the model that the step of `weights` makes, without weights; None if it is not known before the run.

    Such a stage has a method `stand_in(stages)` that returns it. stages: step name -> stage.
    """
    maker: Any = stages.get(weights.step or "") if weights is not None else None
    return maker.stand_in(stages) if hasattr(maker, "stand_in") else None


def capability_problems(
    weights: Weights | None, stages: Mapping[str, Stage], needs: Sequence[type]
) -> list[str]:
    """Returns an error text, for `Stage.preflight_after`, if the step that makes `weights` makes a model without `needs`.

    stages: step name -> stage. Empty if the model is not known before the run.
    """
    model = model_of_step(weights, stages)
    if weights is None or model is None or not (lacking := missing(model, needs)):
        return []
    return [lacking_text(f"step {weights.step!r} makes", model, lacking)]


def lacking_text(subject: str, model: Any, lacking: Sequence[type]) -> str:
    """Returns the error text for a model without what a step needs. subject: such as "step 'pretrain' makes"."""
    texts = "; ".join((capability.__doc__ or "").partition(":")[0] for capability in lacking)
    return f"{subject} a {type(model).__name__}, which does not have what this step needs ({texts})"


def batch_of(streams: dict[str, Stream]) -> Batch:
    """Returns a batch of streams for inference; each row counts as a picture of its own."""
    first = next(iter(streams.values())).data
    return Batch(streams=streams, same=torch.arange(len(first), device=first.device))


def load(
    weights: Weights, max_length: int = 0, needs: Sequence[type] = (), precision: Precision = "fp32"
) -> Loaded:
    """Loads a model in eval mode, on a GPU if the step asks for one, with its weights cast to `precision`.

    max_length: number of text tokens needed, 0 for any. Raises VlpipeError if the model has fewer text positions, lacks one
    of the capabilities `needs`, or has weights that are not finite in `precision`.
    """
    device = torch.device(device_of_step())
    model = placed(folder.load(weights.path), precision, device)
    need_finite(model, weights.path, precision)
    if lacking := missing(model, needs):
        raise VlpipeError(lacking_text(f"the model in {weights.path} is", model, lacking))
    num_positions = model.streams().get("text", {}).get("max_positions", max_length)
    if max_length > num_positions:
        raise VlpipeError(
            f"the model has {num_positions} text positions, but {max_length} are needed; "
            f"set the stage's max text length to at most {num_positions}"
        )
    tokenizer: Any = Tokenizer.load(weights.path) if "text" in model.STREAMS else None
    return Loaded(model, tokenizer, device, dtype_of(precision, device))


def need_finite(model: Any, path: str, precision: str) -> None:
    """Raises VlpipeError if a parameter has a value that is not finite."""
    named = [(name, p) for name, p in model.named_parameters() if p.dtype in FLOATS]
    finite = torch.stack([p.isfinite().all() for _, p in named]).tolist() if named else []
    wrong = [name for (name, _), is_finite in zip(named, finite, strict=True) if not is_finite]
    if wrong:
        raise VlpipeError(
            f"the weights in {path} are not all finite in {precision}: {wrong[0]} has NaN or inf"
        )
