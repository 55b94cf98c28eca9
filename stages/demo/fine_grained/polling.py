"""Questions whether an object is in an image, as many with the answer no as yes, with the negatives of POPE.

Li et al. 2023, https://arxiv.org/abs/2305.10355: an absent object is drawn at random, is the most frequent one in the data
(`popular`), or the one that most often occurs together with a present one (`adversarial`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

NEGATIVES = ("random", "popular", "adversarial")


def polls(
    images: Sequence[Sequence[str]], negatives: str, rng: np.random.Generator
) -> Iterator[tuple[int, str, bool]]:
    """Yields (number of the image, object, whether it is there); for each present object one absent one, if there is one.

    images: the objects of each image, without repeats. The objects asked for are those of all images. negatives: one of
    NEGATIVES. Ties are broken by name.
    """
    counts = Counter(name for objects in images for name in objects)
    together: dict[str, Counter[str]] = defaultdict(Counter)
    for objects in images:
        for name in objects:
            together[name].update(other for other in objects if other != name)
    names = sorted(counts)
    for number, objects in enumerate(images):
        absent = [name for name in names if name not in objects]
        if negatives == "random":
            absent = [absent[k] for k in rng.permutation(len(absent))]
        elif negatives == "popular":
            absent.sort(key=lambda name: -counts[name])
        else:
            assert negatives == "adversarial", negatives
        for name in objects:
            yield number, name, True
            if not absent:
                continue
            other = absent[0]
            if negatives == "adversarial":
                other = max(absent, key=together[name].__getitem__)  # the first of several
            absent.remove(other)
            yield number, other, False
