"""Linear probe: what a linear classifier reads off a frozen model's image features, beside raw pixels and the prior.

Protocol of CPC, MoCo and MAE (frozen features, linear classifier), with ridge regression on one-hot targets in place of SGD:
it has a closed form, so the result has no learning rate or seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import Reject
from vlpipe.pipeline.stage import Dataset, GatherStage, Job, Stage
from vlpipe.stages.classification.labels import word_problems, words_in
from vlpipe.stages.common.batches import Pixels, batch_size_problems, encode_images, read_images
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.heldout import need_heldout

Features = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
THUMBNAIL = 8  # pixels; raw-pixel features are the image averaged to 8 x 8 x 3
MIN_ROWS = 5  # a fifth of the rows chooses the penalty
PENALTIES = tuple(10.0**k for k in range(-4, 5))  # of ridge regression, times the number of rows


@dataclass(frozen=True, kw_only=True)
class LinearProbe(GatherStage):
    """Emits RESULTS: `probe` (accuracy on the last input), `probe_pixels` (the same of raw pixels), `probe_prior` (share of
    the most frequent class), `probe_se` (standard error of `probe`).

    The classifier is fitted on all inputs but the last. words: the classes; a row's class is the one of these words that
    its captions contain, and rows with none or several are left out. The L2 penalty is chosen on a fifth of the rows. Raises
    VlpipeError for fewer than 5 rows to fit on, or none to test, and for embeddings that are not finite.
    """

    NAME: ClassVar[str] = "evaluate.probe:LinearProbe"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True

    model: Weights
    words: list[str]
    source: str = "human"
    batch_size: int = 64

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need_heldout(inp, "evaluate.probe")
        return RESULTS

    def preflight(self) -> list[str]:
        return batch_size_problems(self.batch_size) + word_problems(self.words)

    def preflight_after(self, stages: Mapping[str, Stage]) -> list[str]:
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import capability_problems

        return capability_problems(self.model, stages, [EmbedsImages])

    def run(self, job: Job) -> None:
        from vlpipe.models.interface.capabilities import EmbedsImages
        from vlpipe.stages.common.model import load

        if len(job.inputs) < 2:
            raise VlpipeError(
                "evaluate.probe needs two inputs: rows to fit the classifier on, then rows to test it"
            )
        model = load(self.model, needs=[EmbedsImages])
        rejects: list[Reject] = []
        sides: list[tuple[Features, Labels]] = []
        for inputs in (job.inputs[:-1], job.inputs[-1:]):
            rows = encode_images(
                self._rows(inputs, model.image_size, rejects),
                lambda pixels: _both(pixels, model.embed_images(pixels)),
                self.batch_size,
            )
            found = [(label, f.double().cpu().numpy()) for label, f in rows]
            sides.append(_side(found, ", ".join(data.name for data in inputs), 1 if sides else MIN_ROWS))
        job.reject(rejects)
        (features, labels), (tested, truth) = sides
        own = slice(3 * THUMBNAIL**2, None), slice(0, 3 * THUMBNAIL**2)
        accuracy, of_pixels = (
            float((fitted(features[:, s], labels, len(self.words))(tested[:, s]) == truth).mean())
            for s in own
        )
        figures = {
            "probe": accuracy,
            "probe_pixels": of_pixels,
            "probe_prior": float((truth == np.bincount(labels).argmax()).mean()),
            "probe_se": math.sqrt(accuracy * (1 - accuracy) / len(truth)),
        }
        rows_ = [{"name": name, "value": value, "num_rows": len(truth)} for name, value in figures.items()]
        job.emit(pa.Table.from_pylist(rows_, RESULTS))

    def _rows(
        self, inputs: Sequence[Dataset], size: int, rejects: list[Reject]
    ) -> Iterator[tuple[int, Pixels]]:
        for data in inputs:
            for table in data.batches(["id", "texts"], ["image"]):
                texts = table["texts"].to_pylist()
                for row, pixels in read_images(table, size, rejects):
                    label = self._label([t["text"] for t in texts[row] or () if t["source"] == self.source])
                    if label is not None:
                        yield label, pixels

    def _label(self, texts: Sequence[str]) -> int | None:
        found = words_in(self.words, texts)
        return found[0] if len(found) == 1 else None


def _side(found: Sequence[tuple[int, Features]], names: str, least: int) -> tuple[Features, Labels]:
    """Returns the features (N, D) and the classes (N,). Raises VlpipeError for fewer than `least`, or not finite."""
    if len(found) < least:
        raise VlpipeError(
            f"evaluate.probe: wanted {least} readable images or more whose captions have one of `words`, got {len(found)} "
            f"in {names}"
        )
    features = np.stack([one for _, one in found])
    if not np.isfinite(features).all():
        raise VlpipeError("evaluate.probe: the model gives an embedding that is not finite")
    return features, np.array([label for label, _ in found])


def _both(pixels: Any, feats: Any) -> Any:
    """Returns raw-pixel features and the model's, (B, 192 + E)."""
    import torch
    import torch.nn.functional as F

    small = F.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1)
    return torch.cat([small, feats.float().cpu()], dim=1)


def fitted(features: Features, labels: Labels, num_classes: int) -> Any:
    """Returns a function from features (N, D) to classes (N,): ridge regression on standardised features (M, D)."""
    mean, deviation = features.mean(0), features.std(0) + 1e-9
    held = np.arange(len(labels)) % 5 == 4
    x, y = (features - mean) / deviation, np.eye(num_classes)[labels]

    def weights(x: Features, y: Features, penalty: float) -> tuple[Features, Features]:
        offset = y.mean(0)
        gram = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
        return np.linalg.solve(gram, x.T @ (y - offset)), offset

    def accuracy(penalty: float) -> float:
        w, offset = weights(x[~held], y[~held], penalty)
        return float(((x[held] @ w + offset).argmax(1) == labels[held]).mean())

    best, offset = weights(x, y, max(PENALTIES, key=accuracy))
    return lambda tested: ((tested - mean) / deviation @ best + offset).argmax(1)
