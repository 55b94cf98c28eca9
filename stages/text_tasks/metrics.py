"""The metrics of GLUE and SQuAD.

Wang et al. 2019 (GLUE), https://arxiv.org/abs/1804.07461; Rajpurkar et al. 2016 and 2018 (SQuAD 1.1 and 2.0),
https://arxiv.org/abs/1606.05250, https://arxiv.org/abs/1806.03822: `normalised`, `exact` and `f1` are those of its script.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
ARTICLES = re.compile(r"\b(a|an|the)\b")


def accuracy(guessed: Labels, true: Labels) -> float:
    return float((guessed == true).mean())


def binary_f1(guessed: Labels, true: Labels) -> float:
    """Returns the F1 of class 1; 0 if it is neither guessed nor true."""
    both = int(((guessed == 1) & (true == 1)).sum())
    each = int((guessed == 1).sum() + (true == 1).sum())
    return 2 * both / each if each else 0.0


def matthews(guessed: Labels, true: Labels) -> float:
    """Returns Matthews' correlation of two labelings of any number of classes; 0 if one of them has one class alone.

    Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006.
    """
    num, classes = len(true), range(int(max(guessed.max(), true.max())) + 1)
    right = int((guessed == true).sum())
    pairs = [(int((guessed == k).sum()), int((true == k).sum())) for k in classes]
    covariance = right * num - sum(g * t for g, t in pairs)
    spread = [num**2 - sum(pair[at] ** 2 for pair in pairs) for at in (0, 1)]
    return covariance / math.sqrt(spread[0] * spread[1]) if all(spread) else 0.0


def pearson(guessed: Scores, true: Scores) -> float:
    """Returns the correlation; 0 if one of the two is constant."""
    a, b = guessed - guessed.mean(), true - true.mean()
    size = math.sqrt(float((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / size if size else 0.0


def spearman(guessed: Scores, true: Scores) -> float:
    """Returns the correlation of ranks; equal values share the mean of their ranks."""
    return pearson(_ranks(guessed), _ranks(true))


def _ranks(values: Scores) -> Scores:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    found: Scores = (last - (sizes - 1) / 2)[group]
    return found


def normalised(answer: str) -> str:
    """Returns an answer in lower case, without punctuation, articles, and spaces of more than one."""
    bare = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact(guessed: str, true: Sequence[str]) -> float:
    """Returns 1 if the guess is one of the true answers after `normalised`, else 0. Without a true answer, "" is right."""
    return float(normalised(guessed) in {normalised(one) for one in true or [""]})


def f1(guessed: str, true: Sequence[str]) -> float:
    """Returns the best F1 of the words of the guess and of a true answer; without words in one of them, 1 if both are so."""
    return max(_f1(normalised(guessed).split(), normalised(one).split()) for one in true or [""])


def _f1(guessed: list[str], true: list[str]) -> float:
    if not guessed or not true:
        return float(guessed == true)
    same = (Counter(guessed) & Counter(true)).total()
    return 2 * same / (len(guessed) + len(true))
