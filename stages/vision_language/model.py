"""A model of transformers that writes a text about an image, with its processor."""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vlpipe.pipeline.files import Weights
from vlpipe.stages.common.scores import device, load_model
from vlpipe.stages.inference.precision import Precision
from vlpipe.stages.vision_language.processor import load_processor

if TYPE_CHECKING:
    import torch
    from PIL import Image

Arrays = dict[str, npt.NDArray[Any]]
# Model types whose positions follow from the attention mask, so that padding on the left changes nothing; tested.
PADS_LEFT = frozenset({"blip-2", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "smolvlm"})
PADS_RIGHT = frozenset({"florence2"})  # encoders that count positions from the left


@dataclass(frozen=True)
class VisionLanguageModel:
    """model: in eval mode, on the device of the step. side: where its padding goes, "" if it must have none."""

    model: Any
    processor: Any
    side: str
    _own: threading.local = field(default_factory=threading.local)

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def kind(self) -> str:
        """The model type of its config, such as `qwen2_vl`."""
        return str(self.model.config.model_type)

    @property
    def pad_id(self) -> int:
        found = self.tokenizer.pad_token_id
        return int(self.ends[0] if found is None else found)

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end a text."""
        if self.kind == "blip":  # its `generate` ends at [SEP]
            return (int(self.model.config.text_config.sep_token_id),)
        inner = getattr(self.model, "language_model", None) if self.kind == "blip-2" else None
        found = (inner or self.model).generation_config.eos_token_id
        found = self.tokenizer.eos_token_id if found is None else found
        return tuple(found) if isinstance(found, list | tuple) else (int(found),)

    @cached_property
    def _controls(self) -> re.Pattern[str]:
        tokens = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        return re.compile("|".join(map(re.escape, sorted((t for t in tokens if len(t) > 1), key=len)[::-1])))

    def plain(self, text: str) -> str:
        """Returns a text in which no control token of the model stands, such as one for an image: a web page could write it.

        A space behind the first character makes it plain text.
        """
        return self._controls.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def worded(self, prompt: str, system: str = "") -> str:
        """Returns the prompt in the words of the processor's chat template, or as it is if there is none."""
        from transformers.processing_utils import ProcessorMixin

        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if template is None:
            return f"{system} {prompt}".strip() if system else prompt
        content = [{"type": "image"}, *([{"type": "text", "text": prompt}] if prompt else [])]
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if system:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
        return str(
            ProcessorMixin.apply_chat_template(
                self.processor, messages, chat_template=template, add_generation_prompt=True, tokenize=False
            )
        )

    def prepared(self, image: Image.Image, texts: Sequence[str]) -> list[Arrays]:
        """Returns the model's input for an image and each of its `worded` prompts: arrays (1, ...).

        Called in threads; each has a processor of its own.
        """
        return [self._prepared(image, text) for text in texts]

    def _prepared(self, image: Image.Image, text: str) -> Arrays:
        if not hasattr(self._own, "processor"):
            self._own.processor = copy.deepcopy(self.processor)
        processor = self._own.processor
        if self.kind == "git":  # a prompt is begun, not ended: [CLS] and its words
            found = dict(processor(images=image, return_tensors="np"))
            if text:
                words = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
                ids = np.array([[processor.tokenizer.cls_token_id, *words]], np.int64)
                found |= {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        elif text:
            found = dict(processor(images=[image], text=[text], return_tensors="np"))
        else:
            found = dict(processor(images=[image], return_tensors="np"))
        return {name: np.asarray(value) for name, value in found.items() if isinstance(value, np.ndarray)}

    def moved(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns a batch on the device, its floats in the model's type."""
        where = device()
        return {
            name: value.to(where, self.model.dtype) if value.is_floating_point() else value.to(where)
            for name, value in batch.items()
        }


def load(weights: Weights, precision: Precision) -> VisionLanguageModel:
    """Loads a model of transformers' classes for image-text-to-text, which those for image-to-text are among.

    Raises VlpipeError if the folder holds no such model. Code in the folder is never run.
    """
    from transformers import AutoModelForImageTextToText

    processor = load_processor(weights.path)
    model = load_model(AutoModelForImageTextToText, weights, precision)
    kind = model.config.model_type
    side = "left" if kind in PADS_LEFT else "right" if kind in PADS_RIGHT else ""
    if kind == "blip-2":
        if model.config.text_config.is_encoder_decoder:
            side = "right"
        if processor.num_query_tokens is None:  # older folders: the model's config alone has it
            processor.num_query_tokens = model.config.num_query_tokens
    return VisionLanguageModel(model, processor, side)
