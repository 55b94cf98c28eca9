"""CIDEr and BLEU-4 by pycocoevalcap's scorers, without Java: only the tokenizer is reimplemented. Others on the same tokens.

COCOEvalCap runs Stanford's PTBTokenizer in Java. `ptb_like` follows its rules for English captions (lower case,
clitics split off, punctuation removed), so scores are close to those of COCOEvalCap but not identical.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.evaluate.caption_metrics.java import PIP_LINE, java_problems, meteor, spice
from vlpipe.stages.evaluate.caption_metrics.rouge import rouge_l

TOKENIZER = "ptb_like"  # reported with every score, because scores depend on the tokenizer
Metric = Literal["rouge_l", "meteor", "spice"]  # beside CIDEr and BLEU-4

_QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})
_CLITIC = re.compile(r"(?<=\w)('s|'m|'d|'re|'ve|'ll|n't)\b")
_CANNOT = re.compile(r"\bcan(?=not\b)")
# One token: a clitic; a number such as 1,000 or 3.5 or 2:30; a word, which may have inner hyphens, apostrophes or
# slashes; a symbol that is read aloud, such as %.
_TOKEN = re.compile(r"n't\b|'(?:s|m|d|re|ve|ll)\b|\d+(?:[.,:]\d+)+|\w+(?:[-'/]\w+)*|[$%&#@+=*]")


def score_problems(more: Sequence[Metric] = ()) -> list[str]:
    """Returns why captions cannot be scored here, in words; empty if they can. more: metrics beside CIDEr and BLEU-4."""
    missing = find_spec("pycocoevalcap") is None
    problems = [f"caption scores need pycocoevalcap: {PIP_LINE}"] if missing else []
    return problems + [problem for metric in more if metric != "rouge_l" for problem in java_problems(metric)]


def length_problems(min_length: int, max_length: int) -> list[str]:
    """Returns what is wrong with the numbers of new tokens of a caption, in words."""
    if min_length <= max_length:
        return []
    return [f"min_length must be at most max_length, got {min_length} and {max_length}"]


def ptb_like(text: str) -> str:
    """Returns the caption's tokens, joined by spaces: `A man's dog doesn't sit.` -> `a man 's dog does n't sit`."""
    text = _CLITIC.sub(r" \1", text.translate(_QUOTES).lower())
    return " ".join(_TOKEN.findall(_CANNOT.sub("can ", text)))


def caption_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], npt.NDArray[np.float64]]:
    """Returns `cider` (0 to 10; papers print 100 times this) and `bleu@4` (0 to 1) of one caption per image, and the CIDEr
    of each image, (N,), whose mean is `cider`. BLEU-4 is of all captions together; an image has none of its own.

    references: the human captions of each image.

    CIDEr: Vedantam et al., 2015, https://arxiv.org/abs/1411.5726. It weights n-grams by inverse document frequency,
    so with a single image every weight is 0. Raises VlpipeError for fewer than two images, if no reference has a word, or
    without pycocoevalcap.
    """
    if len(captions) < 2:
        raise VlpipeError(
            f"CIDEr needs at least 2 images (its weights are document frequencies), got {len(captions)}"
        )
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise VlpipeError(f"caption scores need pycocoevalcap: {PIP_LINE} ({error})") from error
    found = {row: [ptb_like(caption)] for row, caption in enumerate(captions)}
    wanted = {row: [ptb_like(r) for r in several] for row, several in enumerate(references)}
    if not any(any(several) for several in wanted.values()):
        raise VlpipeError(
            f"no reference has a word, such as {references[0][0]!r}; CIDEr has nothing to compare with"
        )
    cider, each = Cider().compute_score(wanted, found)
    bleu, _ = Bleu(4).compute_score(wanted, found, verbose=0)
    return {"cider": float(cider), "bleu@4": float(bleu[3])}, np.asarray(each, np.float64)


def more_scores(
    metric: Metric, captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[float, npt.NDArray[np.float64] | None]:
    """Returns a score of all captions, from 0 to 1, and of each, (N,), whose mean it is; None for METEOR, which has none.

    Raises VlpipeError if METEOR or SPICE cannot be computed here; see `caption_metrics.java`.
    """
    found = [ptb_like(caption) for caption in captions]
    wanted = [[ptb_like(r) for r in several] for several in references]
    if metric == "meteor":
        return meteor(found, wanted), None
    if metric == "spice":
        each = spice(found, wanted)
    else:
        each = np.array(
            [rouge_l(c.split(), [r.split() for r in s]) for c, s in zip(found, wanted, strict=True)]
        )
    return float(each.mean()), each
