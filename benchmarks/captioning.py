"""Caption generation: vlpipe's sampler against `generate` of transformers' BLIP, with the same random weights.

    python benchmarks/captioning.py            # some minutes
    python benchmarks/captioning.py --write    # and puts the page into captioning.md beside this file

A batch of 64 pictures of 224 x 224, already encoded; a text decoder of 12 layers, 384 wide, with a vocabulary of 30,522;
20 tokens for each picture, none ends before; fp32, one thread. Random weights make all words about equally likely, so the
nucleus (p = 0.9) is most of the vocabulary: the worst case for a sampler. "Sharp" adds a random constant of deviation 3 to
the logit of each word, so that few are likely, as in a trained captioner. "Model alone" makes the same forward passes and
samples nothing: no sampler with these weights is faster. Seconds are CPU seconds of the process, the ways are measured in
turn, figures are medians, and the ratios are what they are good for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import machine, machine_line, table

from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer

HERE = Path(__file__).parent
VOCABULARY, BATCH, TOKENS, TOP_P = 30_522, 64, 20, 0.9
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]")
SPEC = {
    "image_size": 224,
    "patch_size": 16,
    "vision_width": 384,
    "vision_layers": 1,
    "vision_heads": 6,
    "text_width": 384,
    "text_layers": 12,
    "text_heads": 6,
    "max_text_length": 40,
    "embed_dim": 64,
    "parts": "captioner",
}


class Encoded(torch.nn.Module):
    """In place of transformers' image encoder: returns what is encoded already."""

    def __init__(self, tokens: torch.Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, *_: Any, **__: Any) -> Any:
        return (self.tokens,)


def models(folder: Path) -> tuple[Blip, Any]:
    """Our model, and transformers' model with the same weights."""
    from transformers import BlipForConditionalGeneration

    words = [f"word{i}" for i in range(VOCABULARY - len(SPECIAL))]
    tokenizer = Tokenizer.from_tokens([*SPECIAL, *words])
    torch.manual_seed(0)
    ours = Blip.from_spec(SPEC, tokenizer).eval()
    ours.export(folder, "captioner", tokenizer)
    return ours, BlipForConditionalGeneration.from_pretrained(folder).eval()


def sharpen(ours: Blip, theirs: Any) -> None:
    """Makes few words likely, as training does, in both models alike."""
    order = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(1))
    assert ours.lm_head is not None
    with torch.no_grad():
        for bias in (ours.lm_head.bias, theirs.text_decoder.cls.predictions.bias):
            bias.copy_(3.0 * order)


def seconds(fn: Callable[[], Any]) -> float:
    began = time.process_time()
    fn()
    return time.process_time() - began


def ways(ours: Blip, theirs: Any, top_k: int | None) -> dict[str, Callable[[], Any]]:
    """The functions to measure."""
    tokens = torch.randn(BATCH, 1 + (224 // 16) ** 2, 384)
    theirs.vision_model = Encoded(tokens)
    pixels = torch.zeros(BATCH, 3, 224, 224)

    def vlpipe() -> None:
        found = sample(
            ours,
            tokens,
            generators=[torch.Generator().manual_seed(k) for k in range(BATCH)],
            top_p=TOP_P,
            top_k=top_k,
            min_length=TOKENS,
            max_length=TOKENS,
        )
        assert [len(ids) for ids in found] == [TOKENS] * BATCH

    def transformers() -> None:
        found = theirs.generate(
            pixels,
            do_sample=True,
            top_p=TOP_P,
            top_k=top_k or 0,
            min_new_tokens=TOKENS,
            max_new_tokens=TOKENS,
        )
        assert found.shape == (BATCH, TOKENS + 1)

    def model() -> None:  # the same steps, without sampling
        ids = torch.full((BATCH, 1), 9)
        cache = ours.start_text(tokens, TOKENS + 1)
        for _ in range(TOKENS):
            ours.predict(ours.step_text(ids, cache)[:, -1])

    return {"vlpipe": vlpipe, "transformers": transformers, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write captioning.md")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    at, rows = machine(), []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        ours, theirs = models(Path(folder))
        for case, top_k in (("random", None), ("sharp", None), ("sharp, top_k 50", 50)):
            if case == "sharp":
                sharpen(ours, theirs)
            fns = ways(ours, theirs, top_k)
            taken: dict[str, list[float]] = {name: [] for name in fns}
            for _ in range(options.rounds):
                for name, fn in fns.items():
                    taken[name].append(seconds(fn))
            s = {name: statistics.median(times) for name, times in taken.items()}
            rows.append(
                (
                    case,
                    *(f"{s[name]:.2f}" for name in ("transformers", "vlpipe", "model")),
                    f"{s['transformers'] / s['vlpipe']:.2f}",
                )
            )
            print(rows[-1], flush=True)
    header = (
        "words",
        "transformers, s",
        "vlpipe, s",
        "model alone, s",
        "captions/s, transformers = 1",
    )
    text = (__doc__ or "").partition("\n\n")[2].rpartition("--write")[2].partition("\n\n")[2].strip()
    page = "\n".join(["# Caption generation\n", text, "", machine_line(at), "", table(header, rows), ""])
    print(page)
    if options.write:
        (HERE / "captioning.md").write_text(page)


if __name__ == "__main__":
    main()
