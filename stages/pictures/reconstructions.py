"""What a model makes of parts of images, beside the images: MAE's patches, filled holes, colours, codes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject, need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.batches import Pixels, draws, encode_images, read_images
from vlpipe.stages.pictures.rows import PICTURES, Panel, denormalised, picture, shown

if TYPE_CHECKING:
    from torch import Tensor

    from vlpipe.models.interface.outputs import Outputs

GREY = 0.5  # of hidden pixels


@dataclass(frozen=True, kw_only=True)
class Reconstructions(GatherStage):
    """Emits PICTURES of the first `num` images that can be decoded: the original, what the model sees, and what it makes
    of it.

    By what the model can do: hidden patches (MAE), whose `output` keeps the visible ones; holes (context encoder), whose
    `output` keeps what is around them; colours of a grey image; or what the codes of an image are painted as (discrete VAE).
    corrupt: corruptors of the stream `image`, as in `views` of `train.train`; draws depend on `seed` and the row's id.
    normalised: the model was trained on normalised patches (`pixel_mse`), whose mean and deviation are then those of the
    original, as in the paper's figures. Images are resized without a crop.
    """

    NAME: ClassVar[str] = "pictures.reconstructions:Reconstructions"
    ROWS_ARE: ClassVar[str] = "pictures"
    TORCH: ClassVar[bool] = True

    model: Weights
    corrupt: list[str | dict[str, Any]] = field(default_factory=list)
    normalised: bool = True
    num: Annotated[int, Field(ge=1)] = 12
    seed: int = 0

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "pictures.reconstructions", id=pa.string(), image=pa.binary())
        return PICTURES

    def run(self, job: Job) -> None:
        import torch

        from vlpipe.models.interface.batch import Stream
        from vlpipe.stages.common.model import load
        from vlpipe.stages.loading.makers.base import EXTRA, TARGET
        from vlpipe.stages.train.build import build_views
        from vlpipe.stages.train.recipe import Recipe

        model = load(self.model)
        make = self._maker(model.model)
        makers: Any = {"image": None}  # corruptors get decoded pixels, so they ask no maker
        corruptors = build_views(Recipe(objectives=[], views={"corrupt": self.corrupt}), makers)["corrupt"]
        rejects: list[Reject] = []
        images = islice(self._images(job, model.image_size, rejects), self.num)
        for id_, pixels in encode_images(images, lambda batch: batch, 1):
            samples: list[Any] = [{"image": {"data": pixels.numpy()}}]
            draw = partial(_drawn, int(draws(self.seed, [id_])[0]))
            for corruptor in corruptors:
                samples = corruptor(samples, draw, makers)
            item = samples[0]["image"]
            parts: dict[str, dict[str, Tensor]] = {EXTRA: {}, TARGET: {}}
            for name, value in item.items():
                for kind in parts:
                    if name.startswith(kind):
                        parts[kind][name.removeprefix(kind)] = torch.as_tensor(np.asarray(value))[None]
            data = torch.as_tensor(np.asarray(item["data"]))[None]
            with torch.inference_mode():
                out = model.outputs(image=Stream(data, extra=parts[EXTRA], target=parts[TARGET]))
                try:
                    panels = make(out)
                except KeyError as error:
                    raise VlpipeError(
                        f"corrupt: the model needs {error} of the image, which no corruptor here records"
                    ) from error
            row = picture(id_, [id_], [("original", shown(denormalised(pixels.numpy()))), *panels])
            job.emit(pa.Table.from_pylist([row], PICTURES))
        job.reject(rejects)

    def _images(self, job: Job, size: int, rejects: list[Reject]) -> Iterator[tuple[str, Pixels]]:
        for data in job.inputs:
            for table in data.batches(["id"], ["image"]):
                ids = table["id"].to_pylist()
                for row, pixels in read_images(table, size, rejects):
                    yield ids[row], pixels

    def _maker(self, model: Any) -> Callable[[Outputs], Sequence[tuple[str, Panel]]]:
        """Returns the function from outputs of one image to its panels. Raises VlpipeError if the model can do none of
        it."""
        from vlpipe.models.interface.capabilities import ReconstructsPixels, missing
        from vlpipe.models.interface.code_capabilities import PaintsCodes
        from vlpipe.models.interface.image_capabilities import HasImageCodes
        from vlpipe.models.interface.pretext_capabilities import FillsHoles

        ways: list[tuple[list[type], Callable[[Outputs], Sequence[tuple[str, Panel]]]]] = [
            ([ReconstructsPixels], self._patches),
            ([FillsHoles], _hole),
            ([PaintsCodes, HasImageCodes], _painted),
        ]
        for needs, make in ways:
            if not missing(model, needs):
                return make
        if hasattr(model, "coloured"):
            return _coloured
        raise VlpipeError(
            f"pictures.reconstructions: a {type(model).__name__} reconstructs no pixels, fills no holes, colours "
            "nothing and paints no codes"
        )

    def _patches(self, out: Outputs) -> list[tuple[str, Panel]]:
        from vlpipe.models.objectives.pixel_mse import pixels_of_patches

        image = out.stream("image")
        predicted = out.pixel_prediction.float()[0]
        patch = round((predicted.shape[1] // 3) ** 0.5)
        true = pixels_of_patches(image.data.float(), patch)[0]
        if self.normalised:
            deviation = (true.var(dim=-1, keepdim=True) + 1e-6) ** 0.5
            predicted = predicted * deviation + true.mean(dim=-1, keepdim=True)
        masked = image.target["masked"][0]
        side = image.data.shape[-1]
        whole = denormalised(images_of_patches(predicted, side).cpu().numpy())
        hidden = images_of_patches(masked[:, None].expand_as(predicted).float(), side).cpu().numpy() > 0
        original = denormalised(image.data[0].float().cpu().numpy())
        return _three(original, hidden, whole)


def _drawn(number: int, place: int) -> np.random.Generator:
    return np.random.default_rng((number, place))


def images_of_patches(patches: Tensor, side: int) -> Tensor:
    """(N, patch x patch x 3), the order of `pixels_of_patches` -> (3, S, S)."""
    patch = round((patches.shape[1] // 3) ** 0.5)
    grid = side // patch
    x = patches.view(grid, grid, patch, patch, 3)
    return x.permute(4, 0, 2, 1, 3).reshape(3, grid * patch, grid * patch)


def _three(original: Any, hidden: Any, whole: Any) -> list[tuple[str, Panel]]:
    """Returns what is visible, the original with `whole` in place of what is hidden, and `whole`."""
    return [
        ("masked", shown(np.where(hidden, GREY, original))),
        ("output", shown(np.where(hidden, whole, original))),
        ("prediction", shown(whole)),
    ]


def _hole(out: Outputs) -> list[tuple[str, Panel]]:
    image = out.stream("image")
    original = denormalised(image.data[0].float().cpu().numpy())
    hidden = np.broadcast_to(image.extra["hidden"][0].cpu().numpy(), original.shape)
    filled = ((out.filled[0].float() + 1) / 2).cpu().numpy()
    whole, size = original.copy(), filled.shape[-1]
    at = (original.shape[-1] - size) // 2
    whole[:, at : at + size, at : at + size] = filled
    return _three(original, hidden, whole)


def _coloured(out: Outputs) -> list[tuple[str, Panel]]:
    import torch

    lab = out.lab_pixels.clone()
    lab[:, 1:] = 0
    grey: torch.Tensor = out.model.lab.rgb(lab)
    return [
        (name, shown(x[0].float().cpu().numpy())) for name, x in (("grey", grey), ("output", out.coloured))
    ]


def _painted(out: Outputs) -> list[tuple[str, Panel]]:
    return [("output", shown(out.model.paint(out.image_codes)[0].float().cpu().numpy()))]
