"""What a model computes of one batch: each value once, when an objective first asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.interface.batch import Batch, Stream


class Outputs:
    """Attribute `x` is the value of the model's method `x(outputs)`, computed at its first use and then kept.

    `out.stream("text")` is an input of the batch, `out.image_feat` a value of the model. `view` lays the corrupted streams
    of a view over the batch, `paired` combines rows anew (negatives that the model itself chooses), `teacher` gives the
    values of a teacher without gradient.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        teachers: Mapping[str, Any] | None = None,
        given: Mapping[str, Any] | None = None,
        *,
        grad: bool = True,
    ) -> None:
        """given: values by name that are used instead of the model's. grad: False computes without gradient."""
        self.model, self.batch = model, batch
        self._teachers = teachers or {}
        self._values: dict[str, Any] = dict(given or {})
        self._grad = grad
        self._views: dict[str, Outputs] = {}
        self._by_teacher: dict[str, Outputs] = {}
        self._clean: Outputs | None = None  # of a view: the outputs of the batch itself
        self._shared: frozenset[str] = frozenset()  # values that are the same in both
        self._source: Outputs | None = None  # of paired outputs: those whose rows are combined
        self._rows: Mapping[str, Tensor] = {}
        self._sources: Mapping[str, Stream] = {}
        self._unpaired: Mapping[str, Any] = {}
        self._streams: dict[str, Stream] = {}

    @classmethod
    def of_features(cls, model: Any, batch: Batch, features: Mapping[str, Any]) -> Outputs:
        """Returns outputs whose values are `features` by name; names such as "ema.image_feat" are those of a teacher."""
        own = {name: value for name, value in features.items() if "." not in name}
        out = cls(model, batch, given=own)
        for name, value in features.items():
            teacher, dot, feature = name.partition(".")
            if dot:
                taught = out._by_teacher.setdefault(teacher, cls(model, batch, grad=False))
                taught._values[feature] = value
        return out

    def feature(self, name: str) -> Any:
        """Returns the value `name`, or a teacher's if it is written as "ema.image_feat"."""
        teacher, dot, feature = name.partition(".")
        return getattr(self.teacher(teacher), feature) if dot else getattr(self, name)

    def __len__(self) -> int:
        return len(self.batch)

    def stream(self, name: str) -> Stream:
        """Returns the input stream `name`. Raises ValueError if the batch has none of that name."""
        if self._source is None:
            return self.batch.stream(name)
        if name not in self._streams:
            source = self._sources[name] if name in self._sources else self._source.stream(name)
            self._streams[name] = source.rows(self._rows[name])
        return self._streams[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if name not in self._values and name in self._shared:
            self._values[name] = getattr(self._clean, name)
        if name not in self._values:
            method = getattr(type(self.model), name, None)
            if method is None:
                raise AttributeError(f"{type(self.model).__name__} has no output {name!r}")
            with torch.set_grad_enabled(self._grad and torch.is_grad_enabled()):
                self._values[name] = method(self.model, self)
        return self._values[name]

    def view(self, name: str) -> Outputs:
        """Returns the outputs of view `name` of the batch; "" for the batch itself.

        The model's ENCODINGS of streams that the view does not change are those of the batch itself, computed once.
        """
        if not name:
            return self
        if name not in self._views:
            batch = self.batch.view(name)
            found = Outputs(self.model, batch, self._teachers, grad=self._grad)
            self._views[name] = found._share(self)
        return self._views[name]

    def _share(self, clean: Outputs) -> Outputs:
        """Takes from `clean`, the outputs without a view, what depends on unchanged streams alone."""
        old, new = clean.batch.streams, self.batch.streams
        encodings: Mapping[str, tuple[str, ...]] = getattr(self.model, "ENCODINGS", {})
        self._shared = frozenset(
            x for name in new if new[name] is old.get(name) for x in encodings.get(name, ())
        )
        self._clean = clean
        return self

    def paired(
        self,
        rows: Mapping[str, Tensor],
        *,
        streams: Mapping[str, Stream] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Returns outputs in which sample i takes each stream from row `rows[stream][i]`.

        rows: stream name -> (N,) row indices, the same N for all streams. streams: used in place of this batch's, such as
        the rows of all ranks. given: encodings by name, used in place of this batch's by models that ask `unpaired`.
        """
        found = Outputs(self.model, self.batch, grad=self._grad)
        found._source, found._rows, found._sources, found._unpaired = self, rows, streams or {}, given or {}
        return found

    def unpaired(self, name: str, stream: str) -> tuple[Any, Tensor | None]:
        """Returns value `name` of the rows before pairing, and which of these each sample takes; None: its own.

        With it, a model encodes each picture once, however many texts it is paired with. Of a stream that was replaced by
        `paired` without giving its encodings, the value is that of the pairs.
        """
        if self._source is None or (stream in self._sources and name not in self._unpaired):
            return getattr(self, name), None
        value = self._unpaired[name] if name in self._unpaired else getattr(self._source, name)
        return value, self._rows[stream]

    def teacher(self, name: str) -> Outputs:
        """Returns the outputs of teacher `name`, computed without gradient. Raises ValueError if there is none."""
        if name not in self._by_teacher and name not in self._teachers:
            have = ", ".join(self._teachers) or "none"
            raise ValueError(f"there is no teacher {name!r}; the recipe has: {have}")
        if name not in self._by_teacher:
            found = Outputs(self._teachers[name], self.batch, grad=False)
            self._by_teacher[name] = found if self._clean is None else found._share(self._clean.teacher(name))
        return self._by_teacher[name]
