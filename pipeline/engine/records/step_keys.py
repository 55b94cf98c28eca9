"""The keys of a step, as values; `keys` computes them."""

from __future__ import annotations

import dataclasses

from vlpipe.pipeline.steps.step import Step
from vlpipe.pipeline.storage.digests import sha256_json


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepKeys:
    """A step with its keys.

    identity: from `Stage.identity`; files: (field, digest) of each file parameter; marks: (field, `File.mark`) of those
    outside the root; source: hash of the stage's code.
    """

    step: Step
    identity: tuple[str | int, ...]
    step_key: str
    stage_key: str
    files: tuple[tuple[str, str], ...]
    marks: tuple[tuple[str, str], ...]
    source: str
    folder: str  # relative to the root; only a name: its `_step.json` has the full key


def shard_key(stage_key: str, input_key: str) -> str:
    """Returns the key of the shard that a map stage makes from an input shard."""
    return sha256_json("shard", stage_key, input_key)
