"""METEOR and SPICE, which pycocoevalcap runs in Java.

METEOR: Denkowski and Lavie 2014, https://aclanthology.org/W14-3348. SPICE: Anderson et al. 2016,
https://arxiv.org/abs/1607.08822; it parses with Stanford's CoreNLP 3.6.0, which its package downloads when it is first used.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.errors import VlpipeError

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
PIP_LINE = "pip install 'vlpipe[eval]'"
DOWNLOAD = "python -m pycocoevalcap.spice.get_stanford_models"


def java_problems(metric: str) -> list[str]:
    """Returns why `meteor` or `spice` cannot be computed here, in words; empty if it can."""
    spec = find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        return [f"{metric} needs pycocoevalcap: {PIP_LINE}"]
    if shutil.which("java") is None:
        return [
            f"{metric} is computed in Java, but there is no program `java` on the PATH; install a Java runtime"
        ]
    lib = Path(spec.submodule_search_locations[0], "spice", "lib")
    if metric == "spice" and (missing := [name for name in CORENLP if not (lib / name).is_file()]):
        return [f"spice needs {' and '.join(missing)} in {lib}; `{DOWNLOAD}` puts them there"]
    return []


def meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Returns METEOR 1.5 of all captions together, from 0 to 1. Texts are tokens, joined by spaces.

    Raises VlpipeError if Java or pycocoevalcap is missing, or ends early.
    """
    _check("meteor")
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        score, _ = scorer.compute_score(*_as_dicts(references, captions))
    except (OSError, ValueError) as error:  # no line, or another one than a number, came back
        _release(scorer)
        raise VlpipeError(
            f"meteor: its Java process ended early, with code {scorer.meteor_p.poll()}: {error}"
        ) from error
    return float(score)


def spice(captions: Sequence[str], references: Sequence[Sequence[str]]) -> npt.NDArray[np.float64]:
    """Returns SPICE of each caption (N,), from 0 to 1. Raises VlpipeError as `meteor`, or without CoreNLP."""
    _check("spice")
    from pycocoevalcap.spice.spice import Spice

    try:
        _, each = Spice().compute_score(*_as_dicts(references, captions))
    except (OSError, subprocess.CalledProcessError) as error:
        raise VlpipeError(f"spice: its Java process failed: {error}") from error
    return np.array([one["All"]["f"] for one in each], np.float64)


def _release(scorer: Any) -> None:
    """Frees what a METEOR process that ended holds; otherwise the scorer waits for its own lock when it is deleted."""
    if scorer.lock.locked():
        scorer.lock.release()
    with suppress(OSError):  # what was not written yet cannot be
        scorer.meteor_p.stdin.close()


def _check(metric: str) -> None:
    if problems := java_problems(metric):
        raise VlpipeError(problems[0])


def _as_dicts(
    references: Sequence[Sequence[str]], captions: Sequence[str]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return {k: list(several) for k, several in enumerate(references)}, {
        k: [c] for k, c in enumerate(captions)
    }
