"""A step of BLIP's pretraining on the CPU: ours against one that is put together from transformers' BLIP modules.

    python benchmarks/step.py            # two minutes on one core
    python benchmarks/step.py --write    # and puts the page into step.md beside this file

Both have the same weights, batch, losses (ITC with a momentum teacher and a queue, ITM with hard negatives, LM) and
optimiser (AdamW); text and picture towers are 4 layers of 192. The three losses are compared first, without dropout.
One thread; CPU seconds of the process, steps in turn.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import machine, machine_line, table
from torch import Tensor, nn

from vlpipe.models.flops import flops_per_sample
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.queue import Queue
from vlpipe.models.tokenizer import SPECIAL, Tokenizer
from vlpipe.pipeline.files import File
from vlpipe.stages.train.build import build_net
from vlpipe.stages.train.fit import train_step
from vlpipe.stages.train.run import Run
from vlpipe.stages.train.train import Train

HERE = Path(__file__).parent
BATCH, LENGTH, SIDE, QUEUE, ROUNDS = 8, 30, 96, 1024, 11
ALPHA, MOMENTUM, LR = 0.4, 0.995, 1e-4
TOLERANCE = 1e-4  # of a loss, in nats
MODEL = {
    "image_size": SIDE,
    "vision_width": 192,
    "vision_layers": 4,
    "vision_heads": 3,
    "text_width": 192,
    "text_layers": 4,
    "text_heads": 3,
    "max_text_length": 64,
    "embed_dim": 64,
}


class Endless:
    samples_per_epoch = 1_000_000


def our_run(tokenizer: Tokenizer, dropout: float) -> Run:
    recipe = Train(
        objectives=[
            {"use": "itc:Itc", "queue_size": QUEUE, "alpha": ALPHA, "alpha_ramp_epochs": 0},
            {"use": "itm:Itm", "negatives": "momentum"},
            "lm:Lm",
        ],
        teachers={"ema": {"momentum": MOMENTUM}},
        tokenizer=File(path="made"),
        model={**MODEL, "dropout": dropout},
        batch_size=BATCH,
        steps=10_000,
        lr=LR,
        clip_norm=None,
    )
    torch.manual_seed(0)
    net = build_net(recipe, tokenizer)
    for queue in (module for module in net.modules() if isinstance(module, Queue)):
        rows = [F.normalize(torch.randn(QUEUE, MODEL["embed_dim"]), dim=-1) for _ in queue.names]
        queue.push(rows, torch.zeros_like(queue.ids))
    return Run(recipe, torch.device("cpu"), net, Endless(), 10_000)


class Theirs(nn.Module):
    """The step of BLIP's authors (blip_pretrain.py), on transformers' modules with the weights of our model."""

    def __init__(self, ours: Run, tokenizer: Tokenizer, folder: Path) -> None:
        super().__init__()
        from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval
        from transformers.utils import logging

        logging.disable_progress_bar()
        model = ours.net.model
        for kind in ("retrieval", "captioner"):
            model.export(folder / kind, kind=kind, tokenizer=tokenizer)
        found = BlipForImageTextRetrieval.from_pretrained(folder / "retrieval")
        captioner = BlipForConditionalGeneration.from_pretrained(folder / "captioner")
        self.vision, self.text, self.itm_head = found.vision_model, found.text_encoder, found.itm_head
        self.vision_proj, self.text_proj = found.vision_proj, found.text_proj
        self.decoder = captioner.text_decoder
        self._tie()
        self.temp = nn.Parameter(model.temp.detach().clone())
        parts = {name: getattr(self, name) for name in ("vision", "vision_proj", "text", "text_proj")}
        self.teacher = nn.ModuleDict(copy.deepcopy(parts)).requires_grad_(False)
        self.students = nn.ModuleDict(parts)
        queue = ours.net.objectives[0].queue
        self.queues = [queue.get_buffer(name).clone() for name in queue.names]
        self.queue_ids, self.at = queue.ids.clone(), 0
        self.enc, self.dec = model.config.enc, model.config.dec
        params = [p for p in self.parameters() if p.requires_grad]
        options = {name: ours.optimiser.defaults[name] for name in ("betas", "weight_decay", "fused")}
        self.optimiser = torch.optim.AdamW(params, lr=LR, **options)

    def _tie(self) -> None:
        """All but self-attention is shared between encoder and decoder."""
        bert = self.decoder.bert
        bert.embeddings = self.text.embeddings
        self.decoder.cls.predictions.decoder.weight = self.text.embeddings.word_embeddings.weight
        for own, shared in zip(bert.encoder.layer, self.text.encoder.layer, strict=True):
            own.crossattention, own.intermediate = shared.crossattention, shared.intermediate
            own.output = shared.output

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        pixels, text = batch.stream("image").data, batch.stream("text")
        ids, mask = text.data, text.mask
        assert mask is not None
        image = self.vision(pixel_values=pixels).last_hidden_state
        image_feat = F.normalize(self.vision_proj(image[:, 0]), dim=-1)
        words = self.text(ids, attention_mask=mask).last_hidden_state
        text_feat = F.normalize(self.text_proj(words[:, 0]), dim=-1)
        with torch.no_grad():
            self._follow()
            teacher = self._teacher_features(pixels, ids, mask)
            candidates = [torch.cat([new, old]) for new, old in zip(teacher, self.queues, strict=True)]
        itc = self._itc((image_feat, text_feat), teacher, candidates, batch.same)
        self._push(teacher, batch.same)
        with torch.no_grad():
            texts = self._negatives(image_feat, teacher[1], batch.same)
            images = self._negatives(text_feat, teacher[0], batch.same)
        itm = self._itm(image, ids, mask, texts, images)
        first = torch.full_like(ids[:, :1], self.dec)
        decoder_ids = torch.cat([first, ids[:, 1:]], dim=1)
        lm = self.decoder(
            decoder_ids,
            attention_mask=mask,
            encoder_hidden_states=image,
            labels=decoder_ids.masked_fill(~mask, -100),
        ).loss
        return {"itc": itc, "itm": itm, "lm": lm}

    def _follow(self) -> None:
        own = [p for part in self.students.values() for p in part.parameters()]
        torch._foreach_lerp_(list(self.teacher.parameters()), own, 1 - MOMENTUM)

    def _teacher_features(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> list[Tensor]:
        image = self.teacher["vision"](pixel_values=pixels).last_hidden_state[:, 0]
        words = self.teacher["text"](ids, attention_mask=mask).last_hidden_state[:, 0]
        features = (self.teacher["vision_proj"](image), self.teacher["text_proj"](words))
        return [F.normalize(feature, dim=-1) for feature in features]

    def _itc(self, own: Any, teacher: list[Tensor], candidates: list[Tensor], same: Tensor) -> Tensor:
        positives = (same[:, None] == torch.cat([same, self.queue_ids])[None]).float()
        hard = positives / positives.sum(1, keepdim=True)
        losses = []
        for feature, taught, others in zip(own, teacher, reversed(candidates), strict=True):
            with torch.no_grad():
                soft = F.softmax(taught @ others.T / self.temp, dim=1)
                targets = ALPHA * soft + (1 - ALPHA) * hard
            logprobs = F.log_softmax(feature @ others.T / self.temp, dim=1)
            losses.append(-(logprobs * targets).sum(1).mean())
        return (losses[0] + losses[1]) / 2

    def _push(self, features: list[Tensor], ids: Tensor) -> None:
        rows = slice(self.at, self.at + len(ids))
        for queue, feature in zip(self.queues, features, strict=True):
            queue[rows] = feature
        self.queue_ids[rows] = ids
        self.at = (self.at + len(ids)) % QUEUE

    def _negatives(self, queries: Tensor, candidates: Tensor, same: Tensor) -> Tensor:
        similar = queries @ candidates.T / self.temp
        weights = similar.masked_fill(same[:, None] == same[None], float("-inf")).softmax(1)
        return torch.multinomial(weights, 1)[:, 0]

    def _itm(self, image: Tensor, ids: Tensor, mask: Tensor, texts: Tensor, images: Tensor) -> Tensor:
        """One pass of pairs, pairs with another picture, and pairs with another text."""
        ids = torch.cat([torch.full_like(ids[:, :1], self.enc), ids[:, 1:]], dim=1)
        hidden = self.text(
            torch.cat([ids, ids, ids[texts]]),
            attention_mask=torch.cat([mask, mask, mask[texts]]),
            encoder_hidden_states=torch.cat([image, image[images], image]),
        ).last_hidden_state
        labels = torch.zeros(len(hidden), dtype=torch.long)
        labels[: len(ids)] = 1
        return F.cross_entropy(self.itm_head(hidden[:, 0]), labels)

    def step(self, batch: Batch) -> None:
        torch.stack(list(self.losses(batch).values())).sum().backward()
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)


def made_batch(tokenizer: Tokenizer) -> Batch:
    """Texts of 8 to 28 words, padded to 30 tokens."""
    torch.manual_seed(1)
    lengths = torch.randint(10, LENGTH + 1, (BATCH,))
    lengths[0] = LENGTH
    ids = torch.randint(len(SPECIAL), tokenizer.vocab_size, (BATCH, LENGTH))
    mask = torch.arange(LENGTH)[None] < lengths[:, None]
    ids[:, 0] = tokenizer.cls
    ids[torch.arange(BATCH), lengths - 1] = tokenizer.sep
    text = Stream(ids.masked_fill(~mask, tokenizer.pad), mask)
    pixels = Stream(torch.randn(BATCH, 3, SIDE, SIDE))
    return Batch(streams={"image": pixels, "text": text}, same=torch.arange(1, BATCH + 1))


def check_losses(tokenizer: Tokenizer, folder: Path) -> dict[str, tuple[float, float]]:
    """Returns name -> (our loss, theirs) of one batch without dropout. Raises RuntimeError if they differ."""
    ours = our_run(tokenizer, dropout=0.0)
    theirs = Theirs(ours, tokenizer, folder).train()
    batch = made_batch(tokenizer)
    torch.manual_seed(2)
    values = ours.net(batch)
    torch.manual_seed(2)
    others = theirs.losses(batch)
    found = {
        name: (float((values[name].total / values[name].count).detach()), float(other.detach()))
        for name, other in others.items()
    }
    for name, (own, other) in found.items():
        if abs(own - other) > TOLERANCE:
            raise RuntimeError(f"the loss {name} is {own:.6f} in ours and {other:.6f} in theirs")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write step.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    at = machine()
    tokenizer = Tokenizer.from_tokens([*SPECIAL, *(f"word{i}" for i in range(4000))])
    with tempfile.TemporaryDirectory() as folder:
        losses = check_losses(tokenizer, Path(folder) / "equal")
        ours = our_run(tokenizer, dropout=0.1)
        theirs = Theirs(ours, tokenizer, Path(folder) / "timed").train()
    batch = made_batch(tokenizer)
    gflop = BATCH * flops_per_sample(ours.net, batch) / 1e9
    works = {"vlpipe": lambda: train_step(ours, [batch]), "transformers": lambda: theirs.step(batch)}
    taken: dict[str, list[float]] = {name: [] for name in works}
    for k in range(2 + ROUNDS):
        for name, work in works.items():
            began = time.process_time()
            work()
            if k >= 2:
                taken[name].append(time.process_time() - began)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    rows = [
        (
            name,
            f"{1000 * median:.0f}",
            f"{1000 * min(taken[name]):.0f} to {1000 * max(taken[name]):.0f}",
            f"{median / medians['transformers']:.2f}",
        )
        for name, median in medians.items()
    ]
    header = ("", "CPU ms per step (median)", "all", "transformers = 1")
    after = ", ".join(f"{x:.2f}" for x in os.getloadavg())
    agree = ", ".join(f"{name} {own:.4f} and {other:.4f}" for name, (own, other) in losses.items())
    parts = [
        "# A step of BLIP's pretraining on the CPU",
        (__doc__ or "").partition("\n\n")[2].rpartition("\n\n")[2].strip(),
        f"Written by `python benchmarks/step.py --write`. {machine_line(at)} When it ended: {after}.",
        table(header, rows),
        f"Batch {BATCH}, pictures of {SIDE} px, texts of up to {LENGTH} tokens, {ROUNDS} steps of each; {gflop:.1f} GFLOP "
        f"per step of ours. Losses without dropout, ours and theirs: {agree}.",
    ]
    page = "\n\n".join(parts) + "\n"
    print(page)
    if options.write:
        (HERE / "step.md").write_text(page)


if __name__ == "__main__":
    main()
