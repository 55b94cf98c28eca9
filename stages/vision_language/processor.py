"""Loads a processor of transformers for pictures and text alone, on Pillow: the same input on every machine.

Processors that also read videos ask for torchvision and num2words at loading; no picture needs either.
"""

from __future__ import annotations

import sys
from typing import Any

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.common.scores import pretrained

PARTS = ("image_processor", "tokenizer")


def load_processor(path: str) -> Any:
    """Returns the processor of a transformers folder, without its part for videos.

    Raises VlpipeError if the folder has none that makes input of an image and a text.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer

    whole = _class_of(path, pretrained(AutoConfig, path))
    cls = without_videos(whole)
    parts = cls.get_attributes()
    if set(parts) != set(PARTS):
        raise VlpipeError(
            f"{path}: {cls.__name__} is made of {', '.join(parts)}; wanted an image processor and a tokenizer"
        )
    loaded = {
        "image_processor": pretrained(AutoImageProcessor, path, backend="pil"),
        "tokenizer": pretrained(AutoTokenizer, path),
    }
    try:
        config, more = cls.get_processor_dict(path)
        return cls.from_args_and_dict([loaded.get(name) for name in whole.get_attributes()], config, **more)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise VlpipeError(f"{path}: its processor cannot be loaded: {error}") from error


def _class_of(path: str, config: Any) -> Any:
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    name = name[-1] if isinstance(name, tuple | list) else name
    if name is None or not hasattr(transformers, name):
        raise VlpipeError(
            f"{path}: transformers has no processor of images and texts for {config.model_type}"
        )
    return getattr(transformers, name)


def without_videos(cls: Any) -> Any:
    """Returns a processor class of transformers that wants no part for videos, nor num2words, which SmolVLM's prompts of
    videos call."""
    parts = [name for name in cls.get_attributes() if "video" not in name]
    module = sys.modules[cls.__module__]
    if getattr(module, "num2words", "") is None:
        module.num2words = _words_of_videos  # type: ignore[attr-defined]
    return type(cls.__name__, (cls,), {"get_attributes": classmethod(lambda _: parts)})


def _words_of_videos(*_: object) -> str:
    raise VlpipeError("prompts of videos need num2words: pip install num2words")
