"""Caption generation: vlpipe's sampler against `generate` of transformers' BLIP, with the same random weights.

    python benchmarks/captioning.py            # ten minutes on 2 cores
    python benchmarks/captioning.py --write    # and puts the page into captioning.md beside this file

BLIP with an image encoder and a text decoder of 12 layers each at half of BLIP-base's width, pictures of 224 x 224, a vocabulary of 30,522, batches of
64 pictures, 20 tokens each by nucleus sampling with p = 0.9. Random weights make all words about equally likely: the nucleus is most of
the vocabulary, the worst case for both samplers. A caption ends nowhere before its 20th token. Both ways are measured in turn in one
process; the figures are medians, and the ratios are what they are good for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import machine, machine_line, table

from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer

HERE = Path(__file__).parent
VOCABULARY, BATCH, TOKENS, TOP_P = 30_522, 64, 20, 0.9
SPEC = {
    "image_size": 224,
    "patch_size": 16,
    "vision_width": 384,
    "vision_layers": 12,
    "vision_heads": 6,
    "text_width": 384,
    "text_layers": 12,
    "text_heads": 6,
    "max_text_length": 40,
    "embed_dim": 64,
    "parts": "captioner",
}


def models(folder: Path) -> tuple[Blip, Any]:
    """Our model, and transformers' model with the same weights."""
    from transformers import BlipForConditionalGeneration

    words = [f"word{i}" for i in range(VOCABULARY)]
    tokenizer = Tokenizer.train([" ".join(words[i : i + 50]) for i in range(0, VOCABULARY, 50)], VOCABULARY)
    torch.manual_seed(0)
    ours = Blip.from_spec(SPEC, tokenizer).eval()
    ours.export(folder, "captioner", tokenizer)
    return ours, BlipForConditionalGeneration.from_pretrained(folder).eval()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as d:
        t = time.time()
        ours, theirs = models(Path(d))
        print(ours.config.vocab_size, time.time() - t)
