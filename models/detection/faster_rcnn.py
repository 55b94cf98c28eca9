"""Faster R-CNN on C4 maps (ResNet), with attributes: detection, region features, and the losses to train it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlpipe.models.detection.boxes import ROI_WEIGHTS, clip, decode
from vlpipe.models.detection.config import DetectorConfig
from vlpipe.models.detection.head import RoiHead
from vlpipe.models.detection.matching import Target
from vlpipe.models.detection.nms import nms, surviving_confidence
from vlpipe.models.detection.rpn import Rpn
from vlpipe.models.video.resnet import ResNet
from vlpipe.models.weights.published import read_state

FORMAT = "vlpipe.models.detection"


@dataclass(frozen=True, slots=True)
class Regions:
    """Of one image, best first. N regions, D wide features, C classes; boxes in pixels of the image as it was resized."""

    feat: Tensor  # (N, D)
    box: Tensor  # (N, 4)
    prob: Tensor  # (N, C + 1); the last one is background
    obj: Tensor  # (N,): the likeliest class, background apart
    obj_conf: Tensor  # (N,)
    attr: Tensor  # (N,): the likeliest attribute, "none" apart; -1 without an attribute head
    attr_conf: Tensor  # (N,): among attributes, "none" left out of the softmax


@dataclass(frozen=True, slots=True)
class Detections:
    """Of one image, best first: boxes (N, 4), labels (N,), scores (N,), attributes (N,) or -1."""

    boxes: Tensor
    labels: Tensor
    scores: Tensor
    attributes: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Pick:
    """Which proposals are regions. Bottom-up attention gives 10 to 100, or the 36 that LXMERT takes; 36 to 100 serves both.

    A proposal counts with its best class probability among the classes in whose suppression (`nms`) it stays; those of at
    least `confidence` are kept, but never fewer than `least` nor more than `most`.
    refine: give the box as the head moved it; the feature is always that of the proposal, whose box is given otherwise.
    """

    least: int = 36
    most: int = 100
    confidence: float = 0.2
    nms: float = 0.3
    refine: bool = False


class FasterRcnn(nn.Module):
    """Names of the weights are ours; `layouts` turns public checkpoints into them."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(
            depths=config.depths[:3],
            width=config.width,
            num_classes=0,
            stride_in_1x1=config.stride_in_1x1,
            caffe_pool=config.caffe_pool,
            norm=config.norm,
        )
        self.rpn = Rpn(config, self.backbone.width_out)
        self.head = RoiHead(config, self.backbone.width_out)

    def forward(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target]
    ) -> dict[str, Tensor]:
        """Losses: pixels (B, 3, H, W), normalised, zeros outside each image's (height, width) of `sizes`."""
        maps = self.backbone.maps(pixels)
        anchors, logits, offsets = self.rpn(maps)
        proposals = [
            self.rpn.propose(anchors, logits[k].detach(), offsets[k].detach(), size)
            for k, size in enumerate(sizes)
        ]
        samples = [self.head.sample(p, t) for p, t in zip(proposals, targets, strict=True)]
        pooled = torch.cat([self.head.pooled(maps[k], one.boxes) for k, one in enumerate(samples)])
        features = self.head.layer4(pooled).mean((2, 3))  # all at once: batch norm sees the whole step
        return {
            **self.rpn.losses(anchors, logits, offsets, targets),
            **self.head.losses(features, samples),
        }

    @torch.inference_mode()
    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """One image (3, H, W), normalised -> its proposals (N, 4) and their features (N, D).

        Images go one by one: beside another size one would be padded, and padding reaches into every convolution.
        """
        maps = self.backbone.maps(pixels[None])
        anchors, logits, offsets = self.rpn(maps)
        boxes = self.rpn.propose(anchors, logits[0], offsets[0], (pixels.shape[1], pixels.shape[2]))
        return boxes, self.head.features(maps[0], boxes)

    @torch.inference_mode()
    def regions(self, pixels: Tensor, pick: Pick = Pick()) -> Regions:
        """One image (3, H, W), normalised -> its regions."""
        boxes, features = self.look(pixels)
        logits = self.head.classes(features).float()
        prob = logits.softmax(1)
        found = surviving_confidence(boxes, prob[:, :-1], pick.nms)
        best = found.argsort(descending=True, stable=True)
        num = min(max(int((found >= pick.confidence).sum()), pick.least), pick.most, len(best))
        kept = best[:num]
        conf, obj = prob[kept, :-1].max(1)
        box = boxes[kept]
        if pick.refine:
            box = self._moved(box, features[kept], obj, (pixels.shape[1], pixels.shape[2]))
        said = logits[kept].argmax(1)  # background counts too, as in the published network
        attr, attr_conf = self._attributes(features[kept], said)
        return Regions(features[kept], box, prob[kept], obj, conf, attr, attr_conf)

    @torch.inference_mode()
    def detect(
        self, pixels: Tensor, score: float = 0.05, suppress: float = 0.5, limit: int = 100
    ) -> Detections:
        """One image (3, H, W) -> what detection is scored by: moved boxes of every class above `score` (detectron2's)."""
        boxes, features = self.look(pixels)
        logits = self.head.classes(features).float()
        prob = logits.softmax(1)[:, :-1]
        rows, labels = (prob > score).nonzero(as_tuple=True)
        moved = self._moved(boxes[rows], features[rows], labels, (pixels.shape[1], pixels.shape[2]))
        kept = nms(moved, prob[rows, labels], suppress, groups=labels, limit=limit)
        attributes, _ = self._attributes(features[rows[kept]], labels[kept])
        return Detections(moved[kept], labels[kept], prob[rows, labels][kept], attributes)

    def _moved(self, boxes: Tensor, features: Tensor, labels: Tensor, size: tuple[int, int]) -> Tensor:
        offsets = self.head.boxes(features).float().unflatten(1, (-1, 4))
        own = offsets[torch.arange(len(labels), device=labels.device), labels]
        return clip(decode(boxes, own, ROI_WEIGHTS), size)

    def _attributes(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.num_attributes:
            return torch.full_like(labels, -1), torch.zeros_like(labels, dtype=torch.float32)
        conf, attr = self.head.attribute_logits(features, labels)[:, :-1].softmax(1).max(1)
        return attr, conf

    def normalise(self, rgb: Tensor) -> Tensor:
        """RGB of 0 to 255, (..., 3, H, W) -> what the network reads."""
        x = rgb.flip(-3) if self.config.bgr else rgb
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.config.pixel_mean, self.config.pixel_std))
        return (x - mean) / std

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, **dataclasses.asdict(self.config)}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, folder: str | Path) -> FasterRcnn:
        """From a folder that `save` wrote. Public checkpoints: `layouts.load_public`."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise ValueError(f"detector: there is no config.json in {folder}")
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("format", None) != FORMAT:
            raise ValueError(f"detector: {path} does not belong to a detector that vlpipe saved")
        model = cls(config_of(fields))
        model.load_state_dict(read_state(Path(folder) / "model.safetensors"))
        return model


def config_of(fields: Mapping[str, Any]) -> DetectorConfig:
    """From JSON or YAML, whose lists become tuples; ValueError for a name it does not have."""
    known = {f.name for f in dataclasses.fields(DetectorConfig)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"detector: no parameter {unknown[0]!r}; there are {', '.join(sorted(known))}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return DetectorConfig(**given)


def pad(images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Images (3, h, w) of any sizes -> (B, 3, H, W), zeros at the lower right, and their (height, width)."""
    sizes = [(image.shape[1], image.shape[2]) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return torch.stack(padded), sizes
