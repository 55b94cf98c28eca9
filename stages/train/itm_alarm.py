"""Detects image-text matching (ITM) that learns nothing, the most reported failure of BLIP training.

Each row has one positive and two negatives. Always predicting "no match" gives an accuracy of 2/3; predicting
this prior gives a loss of 0.6365 nats. Reports: github.com/salesforce/BLIP issues 51, 152, 200.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

PRIOR_LOSS = math.log(3) - 2 / 3 * math.log(2)  # entropy of (1/3, 2/3)
PRIOR_ACCURACY = 2 / 3
NEAR = 0.02
ALARM = "collapse_alarm"  # name of the loss row

LossRow = tuple[int, str, float]  # step, name, value


def collapsed(rows: Sequence[LossRow], after: int) -> float | None:
    """Returns the recent mean ITM loss if both loss and accuracy are within 0.02 of the prior, else None.

    "Recent" means the last `after // 4` steps. Returns None before step `after`: every run passes the prior
    early in training.
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
        if row_name == name:
            values.append(value)
    return sum(values) / len(values) if values else None


def message(step: int, loss: float) -> str:
    return (
        f"COLLAPSE ALARM at step {step}: matching (itm) has a loss of {loss:.4f} and an accuracy of 2/3, "
        "the values of a model that ignores the image. Usual causes: lr too high or warmup_steps too few, "
        "a tokenizer that is not the one of init, texts that do not describe their images, small batches. "
        "Set on_collapse: fail to stop at this alarm"
    )
