"""Linear probe as in CLIP: logistic regression on frozen features, its penalty chosen on a validation split.

Radford et al. 2021, https://arxiv.org/abs/2103.00020, appendix A.3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.batches import draws
from vlpipe.stages.probing.features import Labelled, ProbesImages, results, shares

SPLIT = 0x5EED  # of the draw of the validation split
HELD = 5  # one of so many training images is in it


@dataclass(frozen=True, kw_only=True)
class LogisticProbe(ProbesImages):
    """Emits RESULTS: `linear` (accuracy on the last input), `linear_mean_per_class` (mean of the accuracies of its classes),
    `linear_prior` (share of the most frequent class), `linear_se` (standard error of `linear`), `linear_penalty` (log10 of
    the penalty that was chosen).

    Inputs: training and test images; or training, validation and test images. Without a validation input, a fifth of the
    training images is one, drawn by row id. The penalty of the weights is searched from 10^-6 to 10^6 (`logistic.searched`);
    the classifier of the result is then fitted on training and validation images together. max_iterations: of L-BFGS.
    """

    NAME: ClassVar[str] = "probing.linear:LogisticProbe"

    max_iterations: Annotated[int, Field(ge=1)] = 1000

    def run(self, job: Job) -> None:
        from vlpipe.stages.common.model import load
        from vlpipe.stages.probing.logistic import fitted, searched

        if len(job.inputs) not in (2, 3):
            raise VlpipeError(
                f"{self.NAME}: wanted the inputs training, test, or training, validation, test; got {len(job.inputs)}"
            )
        model = load(self.model, needs=self._needs(), precision=self.precision)
        *trained, tested = (self.labelled(job, model, [data]) for data in job.inputs)
        fit, held, both = splits(trained)
        num = 1 + int(max(both.labels.max(), tested.labels.max()))

        def accuracy(penalty: float) -> float:
            found = fitted(fit.features, fit.labels, num, penalty, self.max_iterations)
            return float((found.classes(held.features) == held.labels).mean())

        penalty = searched(accuracy)
        best = fitted(both.features, both.labels, num, penalty, self.max_iterations)
        figures = shares(tested.labels, best.classes(tested.features), "linear", both.labels)
        job.emit(results({**figures, "linear_penalty": math.log10(penalty)}, len(tested)))


def splits(trained: list[Labelled]) -> tuple[Labelled, Labelled, Labelled]:
    """Returns the images to fit on, to choose by, and both. trained: training images, and validation images if there are.

    Raises VlpipeError if one of them is empty.
    """
    if len(trained) == 2:
        fit, held = trained
        both = Labelled(
            np.concatenate([fit.features, held.features]),
            np.concatenate([fit.labels, held.labels]),
            [*fit.ids, *held.ids],
        )
        return fit, held, both
    (both,) = trained
    order = np.argsort(draws(SPLIT, both.ids), kind="stable")
    is_held = np.zeros(len(both), np.bool_)
    is_held[order[: len(both) // HELD]] = True
    if not is_held.any():
        raise VlpipeError(f"{len(both)} training images are too few to hold a fifth of them back")
    return both.rows(~is_held), both.rows(is_held), both
