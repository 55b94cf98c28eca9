"""A model as a folder: `config.json`, `model.safetensors` and, saved by its owner, `tokenizer/`.

`load` finds the class by itself: by the `format` and `model` of our config.json, by the `model_type` of a transformers
folder, by open_clip's config, or by the names in a single published weights file.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from vlpipe.models.build import find, full_module_name
from vlpipe.models.interface.model import Model
from vlpipe.models.weights.hub import local_folder
from vlpipe.models.weights.published import fill, read_state

FORMAT = "vlpipe.model"
BELOW = "vlpipe.models.systems"
OPEN_CLIP = "open_clip_config.json"
FILES = ["*.json", "*.txt", "*.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin"]


def save(model: Any, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes `config.json` (format, class, the constructor's arguments) and `model.safetensors`.

    state: the whole tensors of its `state_dict()`, if those of the model are divided among processes.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    if hasattr(model, "save"):  # a format of its own
        model.save(target, state)
        return
    config = {"format": FORMAT, "model": use_of(type(model)), **vars(model.config)}
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for name, value in (model.state_dict() if state is None else state).items():
        value, stored = value.detach().cpu().contiguous(), {t.data_ptr() for t in tensors.values()}
        tensors[name] = (
            value.clone() if value.data_ptr() in stored else value
        )  # tied weights are stored twice
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})


def load(source: str | Path, /, use: str | None = None, **changes: Any) -> Any:
    """Returns the model in `source`: our folder, a transformers folder, a hub id of either, or a published weights file.

    use: `module:Class` of the model; needed for files whose class their content does not tell. changes: replace config
    values. Raises ValueError if the class is unknown or another than `use`, and for weights missing or left over.
    """
    if Path(source).is_file():
        return find(use or "blip:Blip", BELOW).load(source, **changes)
    folder = local_folder(source, FILES)
    if (folder / OPEN_CLIP).is_file() and not (folder / "config.json").is_file():
        cls = _class_by_format("open_clip", {}, folder)
        _same_class(cls, use, folder)
        return cls.load(folder, **changes)
    if not (folder / "config.json").is_file():
        raise ValueError(f"model: no config.json in {folder}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    form = config.pop("format", None)
    if form != FORMAT:
        cls = _class_by_format(form, config, folder)
        _same_class(cls, use, folder)
        return cls.load(folder, **changes)
    name = config.pop("model", None)
    if not isinstance(name, str):
        raise ValueError(
            f"model: {folder / 'config.json'} names no model: wanted 'module:Class', got {name!r}"
        )
    cls = _model_class(name, folder)
    _same_class(cls, use, folder)
    model = cls.from_spec({**config, **changes})
    fill(model, model.adapted(read_state(folder / "model.safetensors")), name)
    return model


def is_ours(folder: str | Path) -> bool:
    """Returns True for a folder that `save` wrote, False for one of transformers or open_clip, and for a hub id."""
    path = Path(folder, "config.json")
    return path.is_file() and "format" in json.loads(path.read_text(encoding="utf-8"))


def use_of(cls: type) -> str:
    """Returns `module:Class`; of a shipped system the module or package without `vlpipe.models.systems` and its room."""
    module = cls.__module__
    if module.startswith(BELOW + "."):
        room, _, module = module.removeprefix(BELOW + ".").partition(".")
        package = module.partition(".")[0]
        exported = getattr(sys.modules.get(f"{BELOW}.{room}.{package}"), cls.__qualname__, None)
        module = package if exported is cls else module
    return f"{module}:{cls.__qualname__}"


def _same_class(cls: type, use: str | None, folder: Path) -> None:
    if use is not None and find(use, BELOW) is not cls:
        raise ValueError(f"model: {folder} holds a {use_of(cls)}, not a {use}")


def _model_class(name: str, folder: Path) -> type[Model]:
    """Returns the class that a folder names. Its module is imported, so it must be on the Python path already.

    Raises ValueError for a module of the standard library, and for what is no `Model`.
    """
    module = name.partition(":")[0]
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(f"model: {folder / 'config.json'} names {name!r}, which is not a model")
    try:
        cls = find(name, BELOW)
    except ValueError as error:
        raise ValueError(f"model: {folder} was made by {name}, which cannot be imported: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, Model)):
        raise ValueError(f"model: {folder / 'config.json'} names {name!r}, which is not a model")
    return cls


def _class_by_format(form: str | None, config: Mapping[str, Any], folder: Path) -> Any:
    """Returns the class that reads this format: one whose FORMATS has it, or its transformers `model_type`.

    A class that reads one architecture of a `model_type` has `model_type:architecture` in FORMATS.
    """
    wanted = form if form is not None else config.get("model_type")
    readers = {name: cls for cls in _shipped() for name in cls.FORMATS}
    for architecture in config.get("architectures") or ():
        if (exact := f"{wanted}:{architecture}") in readers:
            return readers[exact]
    if wanted not in readers:
        kind = f"format {form!r}" if form is not None else f"transformers model_type {wanted!r}"
        raise ValueError(
            f"model: nothing here reads {folder}, of {kind}; known: {', '.join(sorted(readers))}"
        )
    return readers[wanted]


def _shipped() -> list[type[Model]]:
    """Returns the model classes of the systems that have a layout: each module of a room of `layouts` names one."""
    package = importlib.import_module("vlpipe.models.layouts")
    names = [
        f"{room.name}.{info.name}"
        for room in pkgutil.iter_modules(package.__path__)
        if room.ispkg
        for info in pkgutil.iter_modules([f"{path}/{room.name}" for path in package.__path__])
    ]
    found: list[type[Model]] = []
    for name in names:
        if full_name := full_module_name(name, BELOW):
            module = importlib.import_module(full_name)
            found += [
                value
                for value in vars(module).values()
                if isinstance(value, type)
                and issubclass(value, Model)
                and f"{value.__module__}.".startswith(f"{module.__name__}.")
            ]
    return found


def copy_part(model: Any, source: Any, part: str, into: str) -> None:
    """Copies the weights of the module `part` of `source` into the module `into` of `model`; "" is the whole.

    Raises ValueError if a module is not there, or its tensors are not the same in names and shapes.
    """
    found = []
    for what, module, name in (
        ("init_parts: the source", source, part),
        ("init_parts: the model", model, into),
    ):
        try:
            found.append(module.get_submodule(name))
        except AttributeError as error:
            known = ", ".join(n for n, _ in module.named_children())
            raise ValueError(f"{what} has no module {name!r}; it has {known}") from error
    theirs, ours = found
    fill(ours, theirs.state_dict(), f"init_parts: {part or 'the whole'} into {into or 'the whole'}")
