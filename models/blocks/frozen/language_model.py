"""A language model of transformers inside of a system: a decoder, as OPT and Llama, or an encoder and a decoder, as T5.

What it reads before or between the words, such as an image, comes as embeddings of its own width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.blocks.patches import take

# Types whose logits are the output matrix applied to what the model without a head returns; T5's may be scaled.
DECODERS = ("gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")
ENCODER_DECODERS = ("t5",)


@dataclass
class LlmCache:
    """Texts in progress: `past`, transformers' keys and values; embeddings that are read before the next word, and after
    how many ids; the encoder's output. Keys and values grow with each step, so steps cannot be compiled."""

    past: Any
    image: Tensor | None = None
    at: int = 0
    encoded: Tensor | None = None

    def select(self, rows: Tensor) -> None:
        self.past.reorder_cache(rows)

    def fix(self) -> None:
        """Nothing to do: a step may have any number of tokens."""

    def tensors(self) -> list[Tensor]:
        raise ValueError("compile: the steps of a language model of transformers cannot be compiled")

    def copy_(self, other: Any) -> None:
        raise ValueError("compile: the steps of a language model of transformers cannot be compiled")


class Unkept:
    """A cache that keeps nothing. Without a cache, transformers looks whether several texts are packed into a row,
    which waits for the device."""

    is_compileable = False

    def get_seq_length(self, layer: int = 0) -> int:
        return 0

    def get_query_offset(self, layer: int = 0) -> int:
        return 0

    def get_mask_sizes(self, num: int, layer: int = 0) -> tuple[int, int]:
        return num, 0

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return keys, values


class LanguageModel(nn.Module):
    """config: transformers' of the language model, with its `model_type` (one of DECODERS, ENCODER_DECODERS); weights are
    random.

    vocab_size, end: of the tokenizer; a config without `vocab_size` gets one token more, for what is no text. Raises
    ValueError for another type, and for a tokenizer with more tokens than the model knows.
    """

    def __init__(self, config: Mapping[str, Any], vocab_size: int, end: int) -> None:
        super().__init__()
        import transformers

        kind = config.get("model_type")
        if kind not in (*DECODERS, *ENCODER_DECODERS):
            known = ", ".join((*DECODERS, *ENCODER_DECODERS))
            raise ValueError(f"llm: model_type must be one of {known}, got {kind!r}")
        self.encodes = kind in ENCODER_DECODERS
        auto = transformers.AutoModelForSeq2SeqLM if self.encodes else transformers.AutoModelForCausalLM
        self.net = auto.from_config(config_of(config, vocab_size))
        self.net.config.use_cache = False
        self.end = end
        if vocab_size > self.vocab_size:
            raise ValueError(
                f"llm: the tokenizer has {vocab_size} tokens, and the language model knows {self.vocab_size}"
            )

    @property
    def width(self) -> int:
        return int(self.net.get_input_embeddings().weight.shape[1])

    @property
    def vocab_size(self) -> int:
        return int(self.net.get_input_embeddings().weight.shape[0])

    def never_written(self, start: int, end: int, vocab_size: int) -> list[int]:
        """Returns the ids that no text contains: those without a token, and a start token that ends nothing."""
        return [*([start] if start != end else []), *range(vocab_size, self.vocab_size)]

    def embed(self, ids: Tensor) -> Tensor:
        """(B, L) -> (B, L, width)."""
        found: Tensor = self.net.get_input_embeddings()(ids)
        return found

    def hidden(self, ids: Tensor, image: Tensor | None = None, at: int = 0) -> Tensor:
        """Of a decoder, hidden states (B, L, width): position t predicts the id at t + 1.

        image: embeddings (B, P, width) that stand before the id at position `at`. Padding is on the right, where no id sees
        it; nor is it masked, which would wait for the device.
        """
        return self._beside(self.embed(ids), image, at)

    def hidden_between(self, ids: Tensor, image: Tensor, counts: Tensor, at: Tensor) -> Tensor:
        """As `hidden`, with images of different lengths at different places. image: (B, P, width), of which the first
        `counts` (B,) are real; at: (B,)."""
        x, places = inserted(self.embed(ids), image, counts, at)
        return take(self._decoded(x), places)

    def translated(self, ids: Tensor, image: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        """Of an encoder and a decoder, hidden states (B, L, width) of the decoder: position t predicts the id at t + 1.

        The encoder reads image (B, P, width), then extra["prefix"] (B, K) ids with extra["prefix_mask"] (B, K) bool;
        without these, the end token.
        """
        if "prefix" in extra:
            num = 0 if image is None else image.shape[1]
            mask = nn.functional.pad(extra["prefix_mask"], (num, 0), value=True)
            seen = self._encoded(image, extra["prefix"], mask)
        else:
            mask, seen = None, self._encoded(image, ids.new_full((len(ids), 1), self.end))
        decoder = self.net.get_decoder()
        found = decoder(
            inputs_embeds=self.embed(ids), encoder_hidden_states=seen, encoder_attention_mask=mask
        )
        hidden: Tensor = found[0]
        return hidden

    def predict(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., width) -> logits (..., vocab_size)."""
        if getattr(self.net.config, "scale_decoder_outputs", False):
            hidden = hidden * self.net.config.d_model**-0.5
        logits: Tensor = self.net.get_output_embeddings()(hidden)
        return logits

    def start(self, image: Tensor | None, repeats: int = 1, at: int = 0) -> LlmCache:
        """A cache for texts about images (B, P, width), each `repeats` times; see `hidden`. None: for `repeats` texts."""
        from transformers import DynamicCache, EncoderDecoderCache

        image = None if image is None else image.repeat_interleave(repeats, 0)
        pasts = [DynamicCache(config=self.net.config) for _ in range(1 + self.encodes)]
        if not self.encodes:
            return LlmCache(pasts[0], image, at)
        num = repeats if image is None else len(image)
        ends = torch.full((num, 1), self.end, device=self.net.device)
        return LlmCache(EncoderDecoderCache(*pasts), encoded=self._encoded(image, ends))

    def _encoded(self, image: Tensor | None, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The encoder's output (B, P + K, width) of image (B, P, width), then ids (B, K)."""
        words = self.embed(ids)
        x = words if image is None else torch.cat([image.to(words.dtype), words], 1)
        found: Tensor = self.net.get_encoder()(inputs_embeds=x, attention_mask=mask)[0]
        return found

    def step(self, ids: Tensor, cache: LlmCache) -> Tensor:
        """Hidden states (B, T, width) of the next ids (B, T), which are added to the cache."""
        if self.encodes:
            found = self.net.get_decoder()(
                inputs_embeds=self.embed(ids),
                encoder_hidden_states=cache.encoded,
                past_key_values=cache.past,
                use_cache=True,
            )
            hidden: Tensor = found[0]
            return hidden
        image, cache.image = cache.image, None
        return self._beside(self.embed(ids), image, cache.at, cache.past)

    def _beside(self, words: Tensor, image: Tensor | None, at: int, past: Any = None) -> Tensor:
        """Hidden states (B, L, width) after which the next of `words` (B, L, width) is predicted; see `hidden`."""
        if image is None:
            return self._decoded(words, past)
        found = self._decoded(torch.cat([words[:, :at], image.to(words.dtype), words[:, at:]], 1), past)
        lead = max(0, at - 1)
        return torch.cat([found[:, :lead], found[:, lead + image.shape[1] :]], 1)

    def _decoded(self, x: Tensor, past: Any = None) -> Tensor:
        body = getattr(self.net, self.net.base_model_prefix)
        cache = Unkept() if past is None else past
        hidden: Tensor = body(inputs_embeds=x, past_key_values=cache, use_cache=past is not None)[0]
        return hidden


def config_of(fields: Mapping[str, Any], vocab_size: int) -> Any:
    """Returns transformers' config of the fields that a system has; see `LanguageModel`."""
    from transformers import AutoConfig

    set_ones = {name: value for name, value in fields.items() if value is not None}
    given = {"vocab_size": vocab_size + 1, **set_ones}
    return AutoConfig.for_model(given.pop("model_type"), **given)


def inserted(words: Tensor, image: Tensor, counts: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Puts images between words: (B, L + P, D), and at which place (B, L) of it the id after each word is predicted.

    words: (B, L, D), right-padded; image: (B, P, D), of which the first `counts` (B,) are real; at: (B,), the position of
    the word that an image stands before. What is left over is on the right.
    """
    (_, length, _), most = words.shape, image.shape[1]
    counts, at = counts[:, None], at[:, None]
    j, t = (torch.arange(num, device=words.device)[None] for num in (length + most, length))
    inside = (j >= at) & (j < at + counts)
    of_words = take(words, torch.where(j < at, j, j - counts).clamp(0, length - 1))
    of_image = take(image.to(words.dtype), (j - at).clamp(0, most - 1))
    return torch.where(inside[:, :, None], of_image, of_words), t + counts * (t + 1 >= at)
