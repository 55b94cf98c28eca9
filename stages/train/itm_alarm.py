"""Detects collapse of image-text matching (ITM): the matching head ignores the image and predicts the class prior.

This is the most reported failure of BLIP training (github.com/salesforce/BLIP issues 51, 152, 200). ITM compares each
matching pair with two mismatched ones, so the prior of "match" is 1/3. A model that always predicts this prior has an
accuracy of 2/3 and a loss of 0.6365 nats.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR_LOSS = math.log(3) - 2 / 3 * math.log(2)  # entropy of (1/3, 2/3)
PRIOR_ACCURACY = 2 / 3
NEAR = 0.02  # max difference from the prior's loss (nats) and from its accuracy
ALARM = "collapse_alarm"  # name of the loss row

LossRow = tuple[int, str, float]  # step, name, value


def collapsed(rows: Sequence[LossRow], after: int) -> float | None:
    """Returns the mean ITM loss of the last `after // 4` steps if ITM has collapsed, else None.

    ITM has collapsed if the mean loss and accuracy of these steps are both within 0.02 of the prior's. Returns None
    before step `after`, because early in training every run is near the prior. rows: the losses logged so far.
    """
    if not rows or rows[-1][0] < after:
        return None
    since = rows[-1][0] - max(1, after // 4)
    loss, accuracy = (_mean_since(rows, name, since) for name in ("itm", "itm_accuracy"))
    if loss is None or accuracy is None:
        return None
    near = abs(loss - PRIOR_LOSS) < NEAR and abs(accuracy - PRIOR_ACCURACY) < NEAR
    return loss if near else None


def _mean_since(rows: Sequence[LossRow], name: str, since: int) -> float | None:
    values: list[float] = []
    for step, row_name, value in reversed(rows):
        if step <= since:
            break
        if row_name.rpartition("/")[2] == name:  # with tasks, "task/itm"
            values.append(value)
    return sum(values) / len(values) if values else None


def message(step: int, loss: float) -> str:
    return (
        f"COLLAPSE ALARM at step {step}: image-text matching (itm) has a loss of {loss:.4f} and an accuracy near "
        "2/3, as a model that ignores the image has. Usual causes: lr too high, too few warmup_steps, a tokenizer "
        "other than that of init, texts that do not describe their images, small batches. "
        "To stop training at this alarm, set on_collapse: fail"
    )
