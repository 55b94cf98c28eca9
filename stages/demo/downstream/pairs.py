"""Statements about two demo scenes in the files of NLVR2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vlpipe.stages.demo.downstream.album import Album, TaskWorld, with_thing, without_thing
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, Scene

KINDS = ("left", "right", "both")
STATEMENTS = {
    "left": "the left image has a {} {}",
    "right": "the right image has a {} {}",
    "both": "both images have a {} {}",
}


@dataclass(frozen=True, kw_only=True)
class PairWorld(TaskWorld):
    """Artifacts: images/NAME, truth.parquet, and train.jsonl and eval.jsonl.

    num_train, num_eval: statements, each about two images of its own; rounded down to twos. A statement says that the left
    image, the right one or both have an object. Where it is false, one image has the object all the same: the other one, or
    of two one. Each statement, word for word, is as often true as false.
    """

    NAME: ClassVar[str] = "demo.downstream.pairs:PairWorld"
    STREAM: ClassVar[int] = 23

    def make(self, album: Album, split: str, num: int) -> str:
        objects = [(colour, shape) for colour in COLOURS for shape in SHAPES]
        lines: list[dict[str, str]] = []
        for index in range(num // 2 * 2):
            group, is_true = index // 2, index % 2 == 0
            kind = KINDS[group % len(KINDS)]
            colour, shape = objects[group // len(KINDS) % len(objects)]
            rng = self.rng(split, index)
            name = f"{split}-{index}-0"
            for side, has in enumerate(shown(kind, is_true, rng)):
                album.add(f"{name}-img{side}.png", self._scene(shape, colour, has, rng), rng)
            line = {
                "identifier": f"{name}-0",
                "sentence": STATEMENTS[kind].format(colour, shape),
                "label": str(is_true),
            }
            lines.append(line)
        album.write_lines(f"{split}.jsonl", lines, self.rng(split, len(lines)))
        return f"{len(lines)} statements"

    def _scene(self, shape: str, colour: str, has: bool, rng: np.random.Generator) -> Scene:
        scene = self.scene(rng)
        return with_thing(scene, shape, colour) if has else without_thing(scene, shape, colour, rng)


def shown(kind: str, is_true: bool, rng: np.random.Generator) -> tuple[bool, bool]:
    """Returns whether the left and the right image have the object."""
    if kind == "both":
        left = bool(rng.random() < 0.5)
        return (True, True) if is_true else (left, not left)
    return (is_true, not is_true) if kind == "left" else (not is_true, is_true)
