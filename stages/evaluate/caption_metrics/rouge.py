"""ROUGE-L of captions. Lin 2004, https://aclanthology.org/W04-1013, with COCO's choices."""

from __future__ import annotations

from collections.abc import Sequence

BETA = 1.2  # weight of recall against precision


def rouge_l(caption: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns ROUGE-L of a caption, from 0 to 1; all are sequences of tokens.

    It is (1 + b^2) P R / (R + b^2 P), b = BETA; P and R are the length of the longest common subsequence over that of the
    caption and of the reference, each the greatest of all references, as in COCO's evaluation. 0 if nothing is common.
    Takes time proportional to the product of both lengths.
    """
    precision = recall = 0.0
    for reference in references:
        if caption and reference:
            common = _common(caption, reference)
            precision = max(precision, common / len(caption))
            recall = max(recall, common / len(reference))
    if not precision:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _common(a: Sequence[str], b: Sequence[str]) -> int:
    """Returns the length of the longest common subsequence."""
    before = [0] * (len(b) + 1)
    for token in a:
        row = [0]
        for k, other in enumerate(b):
            row.append(before[k] + 1 if token == other else max(before[k + 1], row[k]))
        before = row
    return before[-1]
