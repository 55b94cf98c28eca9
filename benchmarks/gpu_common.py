"""What the parts of `gpu.py` share: sizes, a clock with a budget, made pictures and texts, one BLIP recipe."""

from __future__ import annotations

import io
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gpu_bare
import numpy as np
import pyarrow as pa
import torch

from vlpipe.models.interface.batch import Batch, Step, Stream
from vlpipe.models.queue import Queue
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import SPECIAL, Tokenizer
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.stage import Dataset
from vlpipe.pipeline.testing import dataset
from vlpipe.stages.common.row import IMAGE_FIELDS, LISTED, text
from vlpipe.stages.train.build import build_net
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.train import Train

VOCABULARY = 30524  # tokens, as BLIP's
AUGMENT = {"crop_scale": (0.2, 1.0), "flip": True, "randaugment": (2, 5.0)}  # BLIP's, in pretraining
BASE = {"image_size": 224}  # the rest are BlipConfig's defaults: ViT-B/16 and BERT-base
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 1,
    "vision_heads": 2,
    "text_width": 32,
    "text_layers": 1,
    "text_heads": 2,
    "max_text_length": 64,
    "embed_dim": 16,
}


@dataclass
class Bench:
    """How large a run is, where it writes, and what it has found: section -> rows, each a dict of plain values."""

    small: bool
    folder: Path
    found: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    section: str = ""
    ends_s: float = 0.0  # when rows of this section start no more, by time.monotonic()
    run_ends_s: float = 0.0  # when the run should end
    matrix_rate: float = 0.0  # FLOP/s, once measured

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.small else "cuda")

    @cached_property
    def tokenizer(self) -> Tokenizer:
        words = [f"word{i}" for i in range(100 if self.small else VOCABULARY - len(SPECIAL))]
        return Tokenizer.from_tokens([*SPECIAL, *words])

    def model(self, **sizes: Any) -> dict[str, Any]:
        return {**(TINY if self.small else BASE), **sizes}

    def add(self, what: str, **values: Any) -> None:
        """Notes and prints one row."""
        self.found.setdefault(self.section, []).append({"what": what, **values})
        shown = "  ".join(f"{name} {_short(value)}" for name, value in values.items())
        print(f"  {what}: {shown}", flush=True)

    def has_time(self, what: str) -> bool:
        """Whether the section's time is not over; if it is, a row says that `what` was left out."""
        if time.monotonic() < self.ends_s:
            return True
        self.add(what, skipped="the time of this section was over")
        return False

    def left_s(self) -> float:
        """Seconds until the run should end."""
        return max(1.0, self.run_ends_s - time.monotonic())

    @contextmanager
    def timed_section(self, name: str, seconds: float) -> Iterator[None]:
        """Within it, rows belong to section `name`, which has `seconds` to start rows in. A failure becomes a row."""
        print(f"{name}:", flush=True)
        self.section, self.ends_s = name, time.monotonic() + seconds
        began = time.monotonic()
        try:
            yield
        except Exception as error:  # the other sections are still measured; `gpu.py` exits with 1
            self.add("failed", error=f"{type(error).__name__}: {error}"[:400])
        print(f"  ({time.monotonic() - began:.0f} s)", flush=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _short(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def about(small: bool) -> dict[str, Any]:
    """Card, driver and versions: enough to read the figures by."""
    card, driver = "none: a trial on the CPU, whose figures mean nothing", "-"
    if not small:
        card = torch.cuda.get_device_name()
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or "?"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "card": card,
        "driver": driver,
        "cuda": torch.version.cuda or "-",
        "cores": os.cpu_count(),
        "load_average": [round(x, 2) for x in os.getloadavg()],
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "pyarrow", "pillow")},
        "jpeg": "simplejpeg" if gpu_bare.HAS_SIMPLEJPEG else "Pillow (simplejpeg is not installed)",
    }


def synchronise(bench: Bench) -> None:
    if bench.device.type == "cuda":
        torch.cuda.synchronize()


def median_s(bench: Bench, work: Callable[[], object], warm: int = 2, num: int = 7) -> float:
    """Median seconds of `work()`, the device's work included."""
    taken = []
    for k in range(warm + num):
        synchronise(bench)
        began = time.perf_counter()
        work()
        synchronise(bench)
        if k >= warm:
            taken.append(time.perf_counter() - began)
    return sorted(taken)[len(taken) // 2]


def recipe(bench: Bench, **more: Any) -> Train:
    """BLIP's pretraining: ITC, ITM and LM, no clipping."""
    queue = {"queue_size": 256} if bench.small else {}  # BLIP's is the default
    given = {
        "objectives": [{"use": "itc:Itc", **queue}, {"use": "itm:Itm", "negatives": "momentum"}, "lm:Lm"],
        "tokenizer": File(path=str(bench.folder / "tokenizer")),
        "model": bench.model(),
        "batch_size": 128,
        "steps": 10_000,
        "warmup_steps": 100,
        "clip_norm": None,
        "max_text_length": 30,
        "gpu": bench.device.type == "cuda",
    }
    return Train(**{**given, **more})


class Endless:
    """In place of a loader: a step asks it for the length of an epoch alone."""

    samples_per_epoch = 1_000_000


def new_run(bench: Bench, of: Train) -> Run:
    """A run before its first step, but with full queues, as after 450 steps of a batch of 128."""
    torch.manual_seed(0)
    with torch.device(bench.device):  # random weights are made there, which is faster
        net = build_net(of, bench.tokenizer).to(bench.device)
    for module in net.modules():
        if isinstance(module, Queue):
            rows = [module.get_buffer(name).clone() for name in module.names]
            module.push(rows, torch.zeros_like(module.ids))
    return Run(of, bench.device, net, Endless(), 10_000)


def sentence(rng: np.random.Generator, tokenizer: Tokenizer) -> str:
    words = tokenizer.tokens[len(SPECIAL) :]
    return " ".join(words[i] for i in rng.integers(len(words), size=rng.integers(5, 25)))


def batch_of(bench: Bench, size: int) -> Batch:
    """A batch in pinned memory, as the loader gives it: random pixels, texts of 5 to 24 words, cut at 30 tokens."""
    rng = np.random.default_rng(0)
    side = bench.model()["image_size"]
    ids, mask = bench.tokenizer.encode([sentence(rng, bench.tokenizer) for _ in range(size)], 30)
    streams = {"image": Stream(torch.randn(size, 3, side, side)), "text": Stream(ids, mask.bool())}
    made = Batch(streams=streams, same=torch.arange(size), step=Step(progress=0.5))
    return made.map(lambda value: value.pin_memory()) if bench.device.type == "cuda" else made


def jpeg(rng: np.random.Generator, width: int) -> bytes:
    """A picture with smooth areas, edges and grain, `width` x 3/4 `width`; 34 KB at 500 pixels, of quality 88."""
    from PIL import Image

    size = (width, 3 * width // 4)
    smooth = Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    detail = rng.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    edges = Image.fromarray(detail).resize(size, Image.Resampling.BILINEAR)
    mixed = 0.75 * np.asarray(smooth, np.float32) + 0.25 * np.asarray(edges, np.float32)
    mixed += rng.normal(0, 4, mixed.shape[:2])[:, :, None]
    out = io.BytesIO()
    Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=88)
    return out.getvalue()


def pictures(width: int, num: int) -> list[bytes]:
    rng = np.random.default_rng(width)
    return [jpeg(rng, width) for _ in range(num)]


def rows_of(bench: Bench, images: Sequence[bytes], num_rows: int, texts: int = 1) -> pa.Table:
    """`num_rows` rows with `texts` texts each; pictures repeat, rows count as different ones."""
    rng = np.random.default_rng(1)
    rows = [
        {
            "id": f"{k:08d}",
            "url": "",
            "texts": [text(sentence(rng, bench.tokenizer), "web") for _ in range(texts)],
            "sha256": None,
            "format": "JPEG",
            "width": None,
            "height": None,
            "image": images[k % len(images)],
        }
        for k in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, pa.schema([*LISTED, *IMAGE_FIELDS]))


def stored(bench: Bench, images: Sequence[bytes], num_rows: int, name: str) -> Dataset:
    return dataset(bench.folder / name, rows_of(bench, images, num_rows), shard_rows=512)


def new_model(bench: Bench, **sizes: Any) -> Blip:
    """A model of random weights, in evaluation mode."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        return Blip.from_spec(bench.model(**sizes), bench.tokenizer).eval().to(bench.device)


def stored_model(bench: Bench, model: Blip, name: str) -> Weights:
    """A folder with a model and its tokenizer."""
    model.save(bench.folder / name)
    bench.tokenizer.save(bench.folder / name / "tokenizer")
    return Weights(path=str(bench.folder / name), digest="made")
