"""Linear action probe: a linear classifier on frozen features of videos, on the official splits of HMDB51 or UCF101."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File
from vlpipe.pipeline.shard import Reject, is_heavy, need
from vlpipe.pipeline.stage import GatherStage, Job
from vlpipe.stages.common.row import RESULTS
from vlpipe.stages.evaluate.video.splits import Labelled, read_split
from vlpipe.stages.features.windows import need_windows, read_windows

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]
STEPS = 200  # of L-BFGS, at most
SHUFFLE = 0x5EED  # of the draw of other labels


@dataclass(frozen=True, kw_only=True)
class ActionProbe(GatherStage):
    """Emits RESULTS: `accuracy` on the test videos of the split, its standard error `se`, and `prior`, the share of the
    class that is the most frequent in training.

    The protocol of MIL-NCE: the classifier learns from each window of the training videos, and a test video's scores are
    the mean of those of its windows. It is a linear SVM, one class against the rest with squared hinge loss and weight
    `c` of the loss (100 there), trained to convergence; features are standardised by the training windows if `standardise`.

    shuffled: the control in which each training video has the label of another one, so that only the prior can be learned.
    splits: HMDB51's or UCF101's folder of lists, or a .csv; see `splits.read_split`. column: of windows. A video is known
    by its file name without the ending. Reject codes (filtered): not_in_split, no_window.
    """

    NAME: ClassVar[str] = "evaluate.video.actions:ActionProbe"
    ROWS_ARE: ClassVar[str] = "figures"
    TORCH: ClassVar[bool] = True
    ADDED: ClassVar[frozenset[str]] = frozenset({"shuffled"})

    splits: File
    split: Literal[1, 2, 3] = 1
    column: Literal["s3d", "frame_feats", "context_feats"] = "s3d"
    shuffled: bool = False
    c: Annotated[float, Field(gt=0)] = 100.0
    standardise: bool = False

    def schema(self, inp: pa.Schema) -> pa.Schema:
        need(inp, "evaluate.video.actions", id=pa.string(), video=pa.string())
        need_windows(inp, "evaluate.video.actions", self.column)
        return RESULTS

    def run(self, job: Job) -> None:
        known = read_split(self.splits.path, self.split)
        videos = list(self._videos(job, known))
        train, test = (
            [(one.label, v) for one, v in videos if one.is_train is part] for part in (True, False)
        )
        if not train or not test:
            raise VlpipeError(
                f"evaluate.video.actions: wanted videos of both parts of split {self.split}, "
                f"got {len(train)} for training and {len(test)} for the test"
            )
        classes = sorted({label for label, _ in train})
        if len(classes) < 2:
            raise VlpipeError(f"evaluate.video.actions: the training videos have one class, {classes[0]}")
        numbers = {label: k for k, label in enumerate(classes)}
        if self.shuffled:
            order = np.random.default_rng(SHUFFLE).permutation(len(train))
            train = [(train[k][0], vectors) for k, (_, vectors) in zip(order, train, strict=True)]
        features = np.concatenate([vectors for _, vectors in train])
        labels = np.concatenate([np.full(len(vectors), numbers[label]) for label, vectors in train])
        scores = fitted(features, labels, len(classes), self.c, self.standardise)
        right = [int(scores(vectors).mean(0).argmax()) == numbers.get(label, -1) for label, vectors in test]
        most = max(classes, key=lambda label: sum(own == label for own, _ in train))
        accuracy = float(np.mean(right))
        found = {
            "accuracy": accuracy,
            "se": math.sqrt(accuracy * (1 - accuracy) / len(right)),
            "prior": float(np.mean([label == most for label, _ in test])),
        }
        rows = [{"name": name, "value": value, "num_rows": len(right)} for name, value in found.items()]
        job.emit(pa.Table.from_pylist(rows, RESULTS))

    def _videos(self, job: Job, known: dict[str, Labelled]) -> Iterator[tuple[Labelled, Vectors]]:
        for data in job.inputs:
            heavy = is_heavy(data.schema.field(self.column))
            light = ["id", "video", *(() if heavy else (self.column,))]
            for table in data.batches(light, [self.column] if heavy else []):
                names = zip(table["id"].to_pylist(), table["video"].to_pylist(), strict=True)
                for (id_, video), windows in zip(names, read_windows(table[self.column]), strict=True):
                    stem = PurePosixPath(video).stem
                    if stem not in known:
                        job.reject(
                            [Reject(id_, "filtered", "not_in_split", f"{stem} is not in split {self.split}")]
                        )
                    elif not len(windows.feats):
                        job.reject([Reject(id_, "filtered", "no_window", "the video has no window")])
                    else:
                        yield known[stem], windows.feats


def fitted(features: Vectors, labels: Labels, num_classes: int, c: float, standardise: bool) -> Any:
    """Returns a function from features (N, D) to scores (N, classes) of a linear SVM fitted to features (M, D).

    Per class: |w|^2 / 2 + c x sum of max(0, 1 - y (w x + b))^2, the bias as a weight of a constant feature, as in LIBLINEAR.
    """
    import torch

    shift, scale = np.zeros(features.shape[1]), np.ones(features.shape[1])
    if standardise:
        shift, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64) + 1e-9

    def inputs(x: Vectors) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([(x - shift) / scale, np.ones((len(x), 1))], axis=1))

    x, signs = inputs(features), torch.full((len(features), num_classes), -1.0, dtype=torch.float64)
    signs[torch.arange(len(labels)), torch.from_numpy(labels)] = 1.0
    weights = torch.zeros(x.shape[1], num_classes, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [weights], max_iter=STEPS, tolerance_grad=1e-8, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        value = weights.square().sum() / 2 + c * (1 - signs * (x @ weights)).clamp(min=0).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    found = weights.detach()
    return lambda tested: (inputs(tested) @ found).numpy()
