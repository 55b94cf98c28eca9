"""Tables of the names that the same weights have in other people's checkpoints, read in both directions.

One of our tensors may be several of theirs (fused query, key, value), in another shape (the patch
convolution), or the same tensor under several names (tied weights, stored twice).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.weights.published import MAX_NAMES, fill

PATCH = "patch.weight"  # end of the name of a patch projection, which others store as a convolution


@dataclass(frozen=True)
class Entry:
    """`ours` is `theirs`, concatenated along dimension 0 if they are several. Optional: a second name of a
    tied tensor. turned: theirs is transposed (GPT's Conv1D).
    """

    ours: str
    theirs: tuple[str, ...]
    optional: bool = False
    turned: bool = False
    shape: tuple[int, ...] | None = None  # of ours, where theirs has other leading dimensions of size 1
    their_shape: tuple[int, ...] | None = None


def layers(
    ours: str,
    theirs: str,
    num_layers: int,
    qkv: Sequence[str],
    names: Mapping[str, str],
    our_qkv: str = "qkv",
) -> Iterator[Entry]:
    """The layers `ours.0`, `ours.1`, ... of an encoder; our query, key and value are one matrix.

    qkv: their names of the three; names: our name of each other part -> theirs, within a layer.
    """
    for i in range(num_layers):
        yield from linear(f"{ours}.{i}.{our_qkv}", *(f"{theirs}.{i}.{name}" for name in qkv))
        for own, other in names.items():
            yield from linear(f"{ours}.{i}.{own}", f"{theirs}.{i}.{other}")


def to_ours(entries: Sequence[Entry], theirs: Mapping[str, Tensor], ignored: str) -> dict[str, Tensor]:
    """Our tensors. ValueError lists every name missing, and every unknown one that `ignored` (regex) does
    not match.
    """
    missing = [n for e in entries if not e.optional for n in e.theirs if n not in theirs]
    known = {n for e in entries for n in e.theirs}
    unknown = [n for n in theirs if n not in known and not re.search(ignored, n)]
    if missing or unknown:
        raise ValueError(
            "the checkpoint does not fit the model: "
            + "; ".join(_listed(("missing", missing), ("unknown", unknown)))
        )
    ours: dict[str, Tensor] = {}
    for entry in entries:
        if entry.theirs[0] not in theirs:
            continue
        value = (
            torch.cat([theirs[n] for n in entry.theirs]) if len(entry.theirs) > 1 else theirs[entry.theirs[0]]
        )
        value = value.t() if entry.turned else value
        value = (
            value.flatten(1)
            if entry.ours.endswith(PATCH)
            else value.reshape(entry.shape)
            if entry.shape
            else value
        )
        if entry.ours in ours and not torch.equal(ours[entry.ours], value):
            raise ValueError(
                f"checkpoint: {', '.join(entry.theirs)} must equal the parameter it shares weights with, but differs"
            )
        ours[entry.ours] = value
    return ours


def to_theirs(entries: Sequence[Entry], ours: Mapping[str, Tensor], patch_size: int) -> dict[str, Tensor]:
    """Their tensors, second names of tied ones included."""
    theirs: dict[str, Tensor] = {}
    for entry in entries:
        value = ours[entry.ours]
        if entry.ours.endswith(PATCH):
            value = value.unflatten(1, (3, patch_size, patch_size))
        value = value.t().contiguous() if entry.turned else value
        value = value.reshape(entry.their_shape) if entry.their_shape else value
        num = len(entry.theirs)
        theirs |= zip(entry.theirs, value.chunk(num) if num > 1 else (value,), strict=True)
    return theirs


def linear(ours: str, *theirs: str, bias: bool = True) -> Iterator[Entry]:
    """Weight and bias of a layer: ours, and theirs, which are concatenated if they are several."""
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Entry(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in theirs))


def _listed(*kinds: tuple[str, Sequence[str]]) -> list[str]:
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds if names]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A system's weights and config in transformers.

    classes: kind -> name of the transformers class; the first is the default. entries: (config, kind) -> table. read: their
    config -> our parameters. write: our config -> their config. ignored: names of theirs that hold no weights, as regex.
    others: kind -> function that writes a folder for another library.
    """

    classes: Mapping[str, str]
    entries: Callable[[Any, str], Iterable[Entry]]
    read: Callable[[Any], dict[str, Any]]
    write: Callable[[Any], Any]
    ignored: str = r"\.position_ids$"
    others: Mapping[str, Callable[[Any, Path], None]] = field(default_factory=dict)

    def load(self, cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
        """Returns our model of a transformers folder. Raises ValueError for weights missing or left over.

        transformers itself reads the files: their names in files change with its versions, those in memory are one of them.
        """
        import transformers

        kind = self._kind_of(folder)
        theirs, told = getattr(transformers, self.classes[kind]).from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
        lacking = sorted(told["missing_keys"])
        if lacking or told["mismatched_keys"]:
            names = ", ".join([*lacking, *(str(key) for key in told["mismatched_keys"])][:MAX_NAMES])
            raise ValueError(
                f"checkpoint: {folder} lacks weights of {self.classes[kind]}, or has others: {names}"
            )
        model = cls(**{**self.read(theirs.config), **changes})
        ours = to_ours(list(self.entries(model.config, kind)), theirs.state_dict(), self.ignored)
        for name in [name for name in ours if name not in model.state_dict()]:
            if not torch.allclose(model.get_buffer(name), ours.pop(name), atol=1e-5):
                raise ValueError(f"checkpoint: {name} differs from the fixed table of {cls.__name__}")
        fill(model, {**model.state_dict(), **model.adapted(ours)}, cls.__name__)
        return model

    def _kind_of(self, folder: Path) -> str:
        """The kind whose class the config names; else the default."""
        named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or ()
        return next((kind for kind, name in self.classes.items() if name in named), next(iter(self.classes)))

    def check(self, model: Any, kind: str | None) -> str:
        """Returns the kind, None replaced by the default. Raises ValueError if `export` cannot write the model as that."""
        kind = kind or next(iter(self.classes))
        known = [*self.classes, *self.others]
        if kind not in known:
            raise ValueError(
                f"export: {type(model).__name__} has no kind {kind!r}; there are {', '.join(known)}"
            )
        return kind

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        """Writes `model` as their class of `kind`, or for another library."""
        import transformers

        kind = self.check(model, kind)
        if kind in self.others:
            self.others[kind](model, folder)
            return
        theirs = getattr(transformers, self.classes[kind])(self.write(model.config))
        table = list(self.entries(model.config, kind))
        state = {**model.state_dict(), **dict(model.named_buffers())}
        theirs.load_state_dict(to_theirs(table, state, getattr(model.config, "patch_size", 0)), strict=False)
        theirs.save_pretrained(folder)
