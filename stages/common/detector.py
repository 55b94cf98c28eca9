"""Loads a detector (Faster R-CNN) for inference, with its class and attribute names, and resizes images for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from vlpipe.models.detection.faster_rcnn import FasterRcnn
from vlpipe.models.detection.layouts import load_public
from vlpipe.pipeline.engine.worker.device import device_of_step
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.storage.text_lines import lines_of

if TYPE_CHECKING:
    from PIL import Image

OBJECTS_FILE, ATTRIBUTES_FILE = "objects_vocab.txt", "attributes_vocab.txt"
OWN, LXMERT = "model.safetensors", "pytorch_model.bin"


@dataclass(frozen=True)
class Detector:
    """A loaded detector.

    classes, attributes: names by index. digest: hex SHA-256 of weights and settings, the same for all file formats.
    """

    model: FasterRcnn
    classes: tuple[str, ...]
    attributes: tuple[str, ...]
    digest: str
    device: torch.device

    def pixels(self, image: Image.Image) -> tuple[torch.Tensor, tuple[float, float]]:
        """Calls `to_pixels` with this model and its device."""
        return to_pixels(self.model, image, self.device)


def to_pixels(
    model: FasterRcnn, image: Image.Image, device: torch.device
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Returns an RGB image as (3, h, w) float32 on `device`, and factors (x, y) that map its coordinates to `image`.

    The factors are (image width / w, image height / h). As in detectron2, Pillow resizes the 8-bit image (bilinear), which
    is then normalised by the model's mean and standard deviation.
    """
    from PIL import Image

    width, height = model.config.resized(*image.size)
    small = (
        image if (width, height) == image.size else image.resize((width, height), Image.Resampling.BILINEAR)
    )
    rgb = torch.from_numpy(np.array(small, dtype=np.uint8)).permute(2, 0, 1).to(device).float()
    return model.normalise(rgb).contiguous(), (image.width / width, image.height / height)


def load(path: str) -> Detector:
    """Loads a detector from a folder, which holds the files of `FasterRcnn.save` or a public checkpoint (`*.pkl` of
    detectron2, `pytorch_model.bin` of LXMERT), and objects_vocab.txt and attributes_vocab.txt with one name per line
    (in the vocabularies of public checkpoints, `a,b` is read as `a`).

    The model is in eval mode, on a GPU if the step asks for one. Raises VlpipeError if a file is missing, the weights cannot
    be read, or the number of names is not that of the model's classes or attributes.
    """
    folder = Path(path)
    file = weights_file(folder)
    try:
        model = FasterRcnn.load(folder) if file.name == OWN else load_public(file)
    except ValueError as error:
        raise VlpipeError(str(error)) from error
    own, num_attributes = file.name == OWN, model.config.num_attributes
    classes = read_names(folder / OBJECTS_FILE, model.config.num_classes, own)
    attributes = read_names(folder / ATTRIBUTES_FILE, num_attributes, own) if num_attributes else ()
    device = torch.device(device_of_step())
    settings = json.dumps(asdict(model.config), sort_keys=True)
    return Detector(model.eval().to(device), classes, attributes, digest_of(model, settings), device)


def digest_of(model: nn.Module, settings: str) -> str:
    """Returns the sha256 of all tensors with their names, and of `settings` (everything else that changes outputs)."""
    digest = hashlib.sha256(settings.encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_file(folder: Path) -> Path:
    """Returns the weights file of a detector's folder. Raises VlpipeError unless there is exactly one."""
    found = [folder / name for name in (OWN, LXMERT) if (folder / name).is_file()] or sorted(
        folder.glob("*.pkl")
    )
    if len(found) != 1:
        files = ", ".join(sorted(p.name for p in folder.glob("*"))) or "nothing"
        raise VlpipeError(
            f"detector: the folder {folder} must contain {OWN}, {LXMERT} or one *.pkl; it contains {files}"
        )
    return found[0]


def read_names(path: Path, num: int, own: bool) -> tuple[str, ...]:
    """Returns `num` names, one per line. Raises VlpipeError if the file is missing or has another number of lines.

    own: the file was written by `save_names`. In the published Visual Genome lists (own=False), synonyms follow a comma
    and case varies: the first name is used, in lower case.
    """
    if not path.is_file():
        raise VlpipeError(
            f"detector: there is no file {path}; it must contain the names of the model's {num} classes or attributes, "
            "one per line"
        )
    lines = lines_of(path.read_text(encoding="utf-8-sig"))
    names = tuple(lines if own else (line.split(",")[0].strip().lower() for line in lines))
    if len(names) != num:
        raise VlpipeError(
            f"detector: the model has {num} classes or attributes, but {path} has {len(names)} lines; "
            "it needs one name per line"
        )
    return names


def save_names(folder: Path, classes: Sequence[str], attributes: Sequence[str]) -> None:
    """Writes class and attribute names to the two vocabulary files of a folder, one per line."""
    for name, lines in ((OBJECTS_FILE, classes), (ATTRIBUTES_FILE, attributes)):
        (folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
