"""Zero-shot classification by prompts whose context is learned from a few labelled images (CoOp).

Zhou et al. 2022, https://arxiv.org/abs/2109.01134.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.models.prompting.context import Position
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Job
from vlpipe.stages.common.batches import draws
from vlpipe.stages.probing.features import EMBEDDING, Labelled, ProbesImages, results, shares

if TYPE_CHECKING:
    import torch

    from vlpipe.models.prompting.context import Prompts
    from vlpipe.stages.common.model import Loaded

CONTEXT_STD = 0.02
FIRST_LR = 1e-5  # of the first epoch
NEAREST = 3  # words listed per vector


@dataclass(frozen=True, kw_only=True)
class LearnedContext(ProbesImages):
    """Emits RESULTS: `coop` (accuracy on the last input), `coop_mean_per_class`, `coop_prior`, `coop_se`, as of a linear
    probe, and `zero_shot`, the accuracy with `templates`, of whose normalised embeddings the mean is taken.

    Artifact context.safetensors: `context`, (M, D), or (C, M, D) if `class_specific`. Artifact words.md: the words whose
    vectors are nearest to each of (M, D), by Euclidean distance (the paper's table 4).

    classes: names in the order of the labels. num_context: M vectors, which are those of the words `init_words` ("a photo
    of a") if they are given, else drawn with deviation 0.02. position: where the name is. ending: text after it. shots:
    images per class that are used, drawn by row id and `seed`; None for all. temperature: that similarities are divided
    by; None for the model's own. epochs: the paper's are 200 for 8 and 16 shots, 100 for 2 and 4, 50 for 1. Encoders are
    frozen; image features are computed once, without the paper's random crops. SGD with momentum 0.9, a first epoch at
    1e-5, then a cosine.
    """

    NAME: ClassVar[str] = "probing.context:LearnedContext"

    classes: list[str]
    num_context: Annotated[int, Field(ge=1)] = 16
    class_specific: bool = False
    position: Position = "end"
    ending: str = "."
    init_words: str = ""
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])
    shots: Annotated[int, Field(ge=1)] | None = 16
    epochs: Annotated[int, Field(ge=1)] = 200
    train_batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.002
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    temperature: Annotated[float, Field(gt=0)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0

    def preflight(self) -> list[str]:
        problems = super().preflight()
        if len(set(self.classes)) < len(self.classes) or len(self.classes) < 2:
            problems.append(f"classes: wanted at least 2 different ones, got {self.classes}")
        if self.output != EMBEDDING:
            problems.append(f"output: prompts are compared with {EMBEDDING}, got {self.output!r}")
        problems += [f"templates: {one!r} has no {{}}" for one in self.templates if "{}" not in one]
        return problems if self.templates else [*problems, "templates: wanted at least one"]

    def _needs(self) -> list[type]:
        from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, HasTemperature

        return [EmbedsImages, EmbedsTexts, *([HasTemperature] if self.temperature is None else [])]

    def run(self, job: Job) -> None:
        import torch
        from safetensors.torch import save_file

        from vlpipe.models.prompting.context import prompts_of, text_feats
        from vlpipe.stages.common.model import load

        if len(job.inputs) < 2:
            raise VlpipeError(f"{self.NAME}: wanted inputs to learn from, then one to test; got 1")
        model = load(self.model, needs=self._needs(), precision=self.precision)
        model.model.requires_grad_(False)
        trained = self._few(self.labelled(job, model, job.inputs[:-1]))
        tested = self.labelled(job, model, job.inputs[-1:])
        for side in (trained, tested):
            if side.labels.max() >= len(self.classes):
                raise VlpipeError(
                    f"classes: {len(self.classes)} names, but there is a label {side.labels.max()}"
                )
        length = model.model.streams()["text"]["max_positions"]
        try:
            prompts = prompts_of(
                model.tokenizer, self.classes, self.num_context, length, self.position, self.ending
            ).to(model.device)
            context = self._learned(model, prompts, trained)
        except ValueError as error:
            raise VlpipeError(f"{self.NAME}: {error}") from error
        with torch.inference_mode():
            learned = text_feats(model.model, prompts, context).float().cpu().numpy()
        figures = shares(tested.labels, (tested.features @ learned.T).argmax(1), "coop", trained.labels)
        by_hand = (tested.features @ self._templates(model, length).T).argmax(1)
        figures["zero_shot"] = float((by_hand == tested.labels).mean())
        job.emit(results(figures, len(tested)))
        save_file(
            {"context": context.detach().float().cpu().contiguous()},
            Path(job.artifacts, "context.safetensors"),
        )
        if not self.class_specific:
            Path(job.artifacts, "words.md").write_text(nearest_words(model, context), encoding="utf-8")

    def _few(self, found: Labelled) -> Labelled:
        """Returns at most `shots` images of each class."""
        order = np.argsort(draws(self.seed, found.ids), kind="stable")
        seen = dict.fromkeys(range(int(found.labels.max()) + 1), 0)
        kept = []
        for at in order.tolist():
            label = int(found.labels[at])
            seen[label] += 1
            if self.shots is None or seen[label] <= self.shots:
                kept.append(at)
        return found.rows(np.array(kept))

    def _learned(self, model: Loaded, prompts: Prompts, trained: Labelled) -> torch.Tensor:
        """Returns the context after training."""
        import torch
        import torch.nn.functional as F

        from vlpipe.models.prompting.context import text_feats

        context = torch.nn.Parameter(self._start(model))
        images = torch.from_numpy(trained.features).to(model.device)
        labels = torch.from_numpy(trained.labels).to(model.device)
        divisor = self.temperature if self.temperature is not None else float(model.model.temp.detach())
        optimiser = torch.optim.SGD([context], lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        rng = np.random.default_rng(self.seed)
        for epoch in range(self.epochs):
            rate = FIRST_LR if epoch == 0 else 0.5 * self.lr * (1 + np.cos(np.pi * epoch / self.epochs))
            optimiser.param_groups[0]["lr"] = float(rate)
            for rows in _batches(rng.permutation(len(trained)), self.train_batch_size):
                feats = text_feats(model.model, prompts, context).float()
                at = torch.from_numpy(rows).to(model.device)
                loss = F.cross_entropy(images[at] @ feats.T / divisor, labels[at])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
        if not context.isfinite().all():
            raise VlpipeError(f"{self.NAME}: the context is not finite after training; lr is {self.lr}")
        return context.detach()

    def _start(self, model: Loaded) -> torch.Tensor:
        import torch

        from vlpipe.models.prompting.context import word_vectors

        table = word_vectors(model.model).weight.detach().float()
        if self.init_words:
            ids = model.tokenizer.ids(self.init_words)
            if len(ids) != self.num_context:
                raise VlpipeError(f"init_words: {len(ids)} tokens, but num_context is {self.num_context}")
            found = table[ids]
        else:
            generator = torch.Generator().manual_seed(self.seed)
            shape = (len(self.classes) if self.class_specific else 1, self.num_context, table.shape[1])
            found = (CONTEXT_STD * torch.randn(shape, generator=generator)).to(table.device)
            return found if self.class_specific else found[0]
        return found.expand(len(self.classes), -1, -1).clone() if self.class_specific else found.clone()

    def _templates(self, model: Loaded, length: int) -> np.ndarray[Any, Any]:
        """Returns the vectors (C, E) of the classes by `templates`."""
        found = []
        for name in self.classes:
            ids, mask = model.tokenizer.encode(
                [t.replace("{}", name) for t in self.templates], length, keep_end=True
            )
            mean = model.embed_texts(ids, mask).float().mean(0)
            found.append((mean / mean.norm()).cpu().numpy())
        return np.stack(found)


def _batches(order: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def nearest_words(model: Loaded, context: torch.Tensor) -> str:
    """Returns a table of the words whose vectors are nearest to each of `context` (M, D), with their distances."""
    import torch

    from vlpipe.models.prompting.context import word_vectors

    far = torch.cdist(context.float(), word_vectors(model.model).weight.detach().float())
    least = far.topk(NEAREST, largest=False)
    lines = ["| vector | nearest words |", "| --- | --- |"]
    for number, (values, ids) in enumerate(
        zip(least.values.tolist(), least.indices.tolist(), strict=True), start=1
    ):
        words = (f"`{model.tokenizer.tokens[i]}` {value:.3f}" for value, i in zip(values, ids, strict=True))
        lines.append(f"| {number} | {', '.join(words)} |")
    return "\n".join(lines) + "\n"
