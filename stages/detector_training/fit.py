"""The training loop of detectors. Steps, checkpoints and logs are those of `train.fit`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models import distributed
from vlpipe.models.detection.faster_rcnn import FasterRcnn, config_of
from vlpipe.models.detection.layouts import load_resnet
from vlpipe.models.interface.objective import Term
from vlpipe.models.weights.published import read_state
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.common.detector import load, save_names
from vlpipe.stages.detector_training.data import DetectorLoader, Images, Vocabulary
from vlpipe.stages.detector_training.recipe import DetectorRecipe
from vlpipe.stages.train.checkpoint import Checkpoints
from vlpipe.stages.train.fit import train
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.runtime import pick_device, reproducible, seed_all

LOSSES = ("rpn_objectness", "rpn_box", "roi_class", "roi_box", "roi_attributes")


class DetectorNet(nn.Module):
    """A detector with the interface of `train.build.Net`; all LOSSES are means over images.

    weights: loss name -> weight, 1 if not given.
    """

    def __init__(self, model: FasterRcnn, weights: Mapping[str, float]) -> None:
        super().__init__()
        self.model = model
        self.losses = {name: (0, weights.get(name, 1.0)) for name in LOSSES}

    def forward(self, batch: Images) -> dict[str, Term]:
        targets = [target.to(batch.pixels.device) for target in batch.targets]
        losses = self.model(batch.pixels, batch.sizes, targets)
        num = len(batch.sizes)
        return {name: Term(value * num, num) for name, value in losses.items()}

    def counts(self, batch: Images) -> dict[str, float]:
        return dict.fromkeys(LOSSES, float(len(batch.sizes)))

    def constrain(self) -> None:
        """Nothing is clamped."""


def fit(config: Mapping[str, Any]) -> None:
    """Trains `config["recipe"]` (a `DetectorRecipe`) on `config["inputs"]` (`Dataset`s).

    Resumes from the newest checkpoint in the folder `config["work"]`, if there is one. Rank 0 writes `result` in that
    folder: the detector, its class and attribute names, and `losses.json`.
    """
    work = Path(config["work"])
    checkpoints = Checkpoints(str(work / "checkpoints"))
    with reproducible(config["recipe"].deterministic):
        run, words = prepare(config["recipe"], config["inputs"])
        if state := checkpoints.latest():
            run.restore(state)
        train(run, work / "progress.log", checkpoints)
        if distributed.rank() == 0:
            result = work / "result"
            run.net.model.save(result)
            save_names(result, words.classes, words.attributes)
            (result / "losses.json").write_text(json.dumps(run.rows))


def prepare(recipe: DetectorRecipe, inputs: Sequence[Dataset]) -> tuple[Run, Vocabulary]:
    """Returns the state before step 0, equal on all ranks, and the vocabulary.

    Raises VlpipeError if a prefix in `freeze` matches no parameter, or the warm-up is not shorter than the run.
    """
    device = pick_device(recipe.gpu)
    seed_all(recipe.seed, "start")
    model, words = build(recipe, inputs)
    for part in recipe.freeze:
        frozen = [p for name, p in model.named_parameters() if name.startswith(part)]
        if not frozen:
            some = ", ".join(list(dict(model.named_parameters()))[:5])
            raise VlpipeError(f"freeze: no parameter name starts with {part!r}; the names include {some}")
        for parameter in frozen:
            parameter.requires_grad_(False)
    loader = DetectorLoader(inputs, recipe, model, words, recipe.flip)
    net = DetectorNet(model.to(device).train(), recipe.loss_weights)
    num_steps = recipe.num_steps(loader.samples_per_epoch)
    if recipe.warmup_steps >= num_steps:
        raise VlpipeError(
            f"warmup_steps must be less than the {num_steps} steps of the run, got {recipe.warmup_steps}"
        )
    return Run(recipe, device, net, loader, num_steps), words


def build(recipe: DetectorRecipe, inputs: Sequence[Dataset]) -> tuple[FasterRcnn, Vocabulary]:
    """Returns the detector of `init` with its vocabulary, or without `init` a new one with the vocabulary of the inputs."""
    if recipe.init is not None:
        found = load(recipe.init.path)
        return found.model.to(torch.device("cpu")), Vocabulary(found.classes, found.attributes)
    words = Vocabulary.of(inputs, recipe.max_classes, recipe.max_attributes)
    sizes = {"num_classes": len(words.classes), "num_attributes": len(words.attributes)}
    model = FasterRcnn(config_of({**(recipe.model or {}), **sizes}))
    if recipe.init_resnet is not None:
        load_resnet(model, read_tensors(recipe.init_resnet.path))
    return model, words


def read_tensors(path: str) -> dict[str, Tensor]:
    """Reads a state dict from a .safetensors or torch file; no code in it is executed."""
    return read_state(path)
