"""The base class of systems: what a model tells about itself, and how it is built from a YAML spec."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, Self

from torch import Tensor, nn


class Model(nn.Module):
    """Base class of systems. A subclass composes blocks in `__init__` (keyword arguments only: they are its config) and
    adds one method per output, each from `Outputs` to a value.

    STREAMS: the streams it reads: name -> maker (`module:Class` below `vlpipe.stages.loading.makers`).
    FORMATS: names of other layouts that its `load` reads: a transformers `model_type`, `model_type:architecture` if that
    is one of several, or an older format of ours.
    ENCODINGS: stream name -> outputs that depend on that stream alone, so that they can be re-used in other pairs.
    CHAIN: names of the module lists that each output passes through one after the other, each layer once and each with one
    tensor, first argument and result: what a pipeline cuts (`parallel.chain`). Empty for other models.
    config: the constructor's arguments, defaults included; saved with the weights.
    """

    STREAMS: ClassVar[Mapping[str, str]] = {}
    FORMATS: ClassVar[tuple[str, ...]] = ()
    ENCODINGS: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    CHAIN: ClassVar[tuple[str, ...]] = ()
    config: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model: Self = super().__new__(cls)
        if "config" not in cls.__annotations__:  # a subclass with a config class of its own sets it
            given = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)
            given.apply_defaults()
            fields = {name: value for name, value in given.arguments.items() if name != "self"}
            object.__setattr__(model, "config", SimpleNamespace(**fields))
        return model

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], tokenizer: Any = None) -> Self:
        """Returns a model of the parameters `spec`; those that a tokenizer has (`vocab_size`, `end`, ...) come from it.

        Raises ValueError for a parameter that the constructor does not have, or one that it needs and does not get.
        """
        wanted = inspect.signature(cls).parameters
        for key in spec:
            if key not in wanted:
                near = get_close_matches(key, wanted, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(wanted)}"
                raise ValueError(f"model: {cls.__name__} has no parameter {key!r}; {hint}")
        given = {
            name: getattr(tokenizer, name)
            for name in wanted
            if name not in spec and tokenizer is not None and hasattr(tokenizer, name)
        }
        needed = [n for n, p in wanted.items() if p.default is p.empty and n not in spec and n not in given]
        if needed:
            raise ValueError(f"model: {cls.__name__} needs {', '.join(needed)}")
        return cls(**given, **spec)

    def streams(self) -> dict[str, dict[str, Any]]:
        """Returns the spec of the maker of each stream: `use`, and parameters that follow from the model's sizes.

        Here: `size` of the stream `image` from the config's `image_size`, `max_positions` of `text` from `max_text_length`.
        """
        sizes = {"image": ("size", "image_size"), "text": ("max_positions", "max_text_length")}
        specs: dict[str, dict[str, Any]] = {name: {"use": use} for name, use in self.STREAMS.items()}
        for name, (parameter, field) in sizes.items():
            if name in specs and hasattr(self.config, field):
                specs[name][parameter] = getattr(self.config, field)
        return specs

    @classmethod
    def load(cls, source: str | Path, /, **changes: Any) -> Any:
        """Returns the model in a transformers folder, one of FORMATS. `changes` replace config values."""
        return _layout(cls).load(cls, Path(source), changes)

    def export(self, folder: str | Path, kind: str | None = None, tokenizer: Any = None) -> None:
        """Writes a folder for `from_pretrained` of the transformers class of this system, or for another library.

        kind: which of several; None for the first.

        tokenizer: saved with it, for a model that reads texts.

        Raises ValueError if transformers has no class for it.
        """
        _layout(type(self)).export(self, Path(folder), kind)
        if tokenizer is not None:
            tokenizer.save(folder)

    def check_export(self, kind: str | None = None) -> None:
        """Raises ValueError if `export` cannot write this model as `kind`. Needs no weights."""
        _layout(type(self)).check(self, kind)

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns saved weights as this model needs them: positions interpolated to another image size, for example."""
        return state

    def teacher_copy(self) -> nn.Module:
        """Returns a copy for a momentum teacher; override it to leave out parts that no teacher needs."""
        return copy.deepcopy(self)

    def constrain(self) -> None:
        """Called before the first and after each optimiser step, without gradient: clamp a temperature, for example."""

    def lacks(self, capability: type) -> bool:
        """Returns whether this model, as built, has no such capability although its class has the methods."""
        return False


def _layout(cls: type) -> Any:
    """Returns LAYOUT of `vlpipe.models.layouts.<room>.<name of the system>`; of a system with several classes, LAYOUTS by
    their names.

    Raises ValueError if there is none.
    """
    system = cls.__module__.removeprefix("vlpipe.models.systems.").split(".")[:2]
    name = ".".join(["vlpipe.models.layouts", *system])
    known = importlib.util.find_spec(name.rpartition(".")[0]) and importlib.util.find_spec(name)
    module = importlib.import_module(name) if known else None
    found = getattr(module, "LAYOUTS", {}).get(cls.__name__) or getattr(module, "LAYOUT", None)
    if found is None:
        raise ValueError(
            f"{cls.__name__}: transformers has no class for this system that vlpipe reads or writes"
        )
    return found
