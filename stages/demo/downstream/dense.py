"""Demo scenes with the class of each pixel, in the files of ADE20K."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

from vlpipe.stages.demo.captions import human_caption
from vlpipe.stages.demo.downstream.album import Album, TaskWorld
from vlpipe.stages.demo.scenes import mask_of


@dataclass(frozen=True, kw_only=True)
class DenseWorld(TaskWorld):
    """Artifacts: images/NAME.jpg, masks/NAME.png, truth.parquet, and train.jsonl and eval.jsonl: {file, captions}.

    num_train, num_eval: images. A mask has 1 for the background and 2 to 6 for the shapes (`demo.scenes.SHAPES`).
    """

    NAME: ClassVar[str] = "demo.downstream.dense:DenseWorld"
    STREAM: ClassVar[int] = 27

    def make(self, album: Album, split: str, num: int) -> str:
        (album.folder / "masks").mkdir(exist_ok=True)
        lines = []
        for index in range(num):
            rng = self.rng(split, index)
            scene, name = self.scene(rng), f"dense_{split}_{index:06d}"
            mask_of(scene, copy.deepcopy(rng)).save(album.folder / "masks" / f"{name}.png")
            album.add(f"{name}.jpg", scene, rng)
            lines.append({"file": f"{name}.jpg", "captions": [human_caption(scene, rng)]})
        album.write_lines(f"{split}.jsonl", lines, self.rng(split, num))
        return f"{num} images with masks"
