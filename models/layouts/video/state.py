"""A layout of a single published file of tensors, whose shapes tell the sizes of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from vlpipe.models.layouts.table import Entry, to_ours
from vlpipe.models.weights.published import fill, read_state

State = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class StateLayout:
    """entries: of a model's config. read: tensors -> parameters of our model. more: tensors -> ours that no entry has.
    renamed: a name in the file -> the name that the entries have.
    """

    entries: Callable[[Any], Iterable[Entry]]
    read: Callable[[State], dict[str, Any]]
    more: Callable[[State, Any], dict[str, Tensor]]
    ignored: str = r"num_batches_tracked$"
    renamed: Callable[[str], str] = str

    def load(self, cls: Any, path: Path, changes: Mapping[str, Any]) -> Any:
        """Returns our model of the file, bare or out of a training checkpoint. ValueError lists what does not fit."""
        state = {
            self.renamed(name.removeprefix("module.")): value for name, value in read_state(path).items()
        }
        try:
            model = cls(**{**self.read(state), **changes})
        except KeyError as error:
            raise ValueError(
                f"checkpoint: {path} is not a file of {cls.__name__}: it has no tensor {error}"
            ) from error
        ours = to_ours(list(self.entries(model.config)), state, self.ignored) | self.more(state, model)
        fill(model, ours, cls.__name__)
        return model

    def check(self, model: Any, kind: str | None) -> str:
        raise ValueError(f"export: {type(model).__name__} is written in vlpipe's own format alone")

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        self.check(model, kind)
