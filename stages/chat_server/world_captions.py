"""What the small server says about images of a demo world: the truth, mostly."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np

from vlpipe.pipeline.files import File
from vlpipe.stages.chat_server.server import any_caption
from vlpipe.stages.common.batches import seed_of
from vlpipe.stages.demo.captions import human_caption
from vlpipe.stages.demo.scenes import Scene
from vlpipe.stages.ground_truth.filter import read_truth, scene_of


class WorldCaptions:
    """Captions of the images of the demo world in a root, which is looked for when the first request comes.

    wrong: share of captions that are of another image. An image that the world does not have gets any caption.
    """

    def __init__(self, root: str, wrong: float) -> None:
        self._root, self._wrong = Path(root), wrong
        self._scenes: dict[str, Scene] = {}
        self._all: list[Scene] = []
        self._lock = threading.Lock()

    def __call__(self, sha256: str, prompt: str, seed: int) -> str:
        self._look()
        scene = self._scenes.get(sha256)
        if scene is None:
            return any_caption(sha256, prompt, seed)
        rng = np.random.default_rng(seed_of("chat", sha256, prompt, seed))
        if rng.random() < self._wrong:
            scene = self._all[int(rng.integers(len(self._all)))]
        return human_caption(scene, rng)

    def _look(self) -> None:
        with self._lock:
            if self._all:
                return
            for truth in sorted(self._root.glob("world-*/artifacts/truth.parquet")):
                for url, row in read_truth(File(str(truth))).items():
                    image = truth.parent / "images" / url.rpartition("/")[2]
                    if image.is_file() and row["fault"] is None:
                        scene = scene_of(row)
                        self._scenes[hashlib.sha256(image.read_bytes()).hexdigest()] = scene
                        self._all.append(scene)
