"""The configuration of a training run (model, objectives, data, optimiser): the YAML keys of a `Train` step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict

from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.optim.parameter_group import ParameterGroup
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.pipeline.files import File, Weights
from vlpipe.stages.train.workers.spread import Spread

MODELS = "vlpipe.models.systems"
TEACHERS = "vlpipe.models"
OBJECTIVES = "vlpipe.models.objectives"
MAKERS = "vlpipe.stages.loading.makers"
CORRUPTORS = "vlpipe.stages.loading.corruptors"
DEFAULT_MODEL = "blip:Blip"
SHORT = {
    "max_text_length": ("text", "max_length"),
    "prompt": ("text", "prompt"),
    "augment": ("image", "augment"),
}
TASK = 5  # seed constant of the draw of tasks; distinct from those of `loading.order` and `loader`


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """Duration, optimiser and hardware of a training run, for any kind of model.

    The defaults of lr, min_lr, decay_rate and weight_decay are those of BLIP's pretraining.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset(
        {"optimiser", "momentum", "groups", "compile", "deterministic", "recompute", "milestones"}
    )

    # Duration: exactly one of `steps` and `epochs`
    steps: int | None = None
    epochs: float | None = None
    batch_size: int = 64  # samples per optimiser step, summed over workers and micro-batches
    accumulate: int = 1  # micro-batches per optimiser step
    shuffle_window: int = 16384  # rows held in memory and shuffled together

    # Optimiser
    optimiser: Literal["adamw", "sgd", "lars"] = "adamw"
    momentum: float = 0.9  # of sgd and lars
    groups: list[ParameterGroup] = field(default_factory=list)
    lr: float = 3e-4
    min_lr: float = 1e-6
    warmup_steps: int = 0
    schedule: Literal["cosine", "linear", "step_decay", "milestones"] = "cosine"
    decay_rate: float = 0.9  # step_decay: factor on lr at each new epoch; milestones: at each of these epochs
    milestones: list[int] = field(default_factory=list)  # epochs, counted from 0
    weight_decay: float = 0.05
    no_decay: list[str] = field(
        default_factory=list
    )  # substrings of parameter names; scalars and vectors never decay
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float | None = 1.0
    # of autocast; auto: bf16 on GPUs that compute in it, fp16 on older ones, fp32 on a CPU. fp16 has loss scaling
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    # the same weights from each run on the same device; an operation that does not allow it is an error
    deterministic: bool = True
    # activation checkpointing: layers compute their activations again in the backward pass, to save memory
    recompute: bool = False
    # by torch.compile, at the first step; values differ in their last bits
    compile: bool = False
    seed: int = 0

    # Hardware and logging
    num_workers: int = 1
    gpu: bool = False
    log_every: int = 50  # steps per loss row and progress line
    checkpoint_every: int = 500  # steps; a killed run repeats at most this many
    loader_threads: int = 2  # per worker
    # steps under `vlpipe run --sample`, if the training has more. Their time is multiplied, so few are enough, unless a
    # later step generates texts with the model: after a few steps it writes to the maximum length, which takes longer
    sample_steps: int = 20

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an optimiser step in each process."""
        return self.accumulate

    @property
    def micro_batch_size(self) -> int:
        return self.batch_size // (self.num_workers * self.accumulate)

    def num_steps(self, samples_per_epoch: int) -> int:
        """Returns the number of optimiser steps of the run: `steps`, or those of `epochs`, rounded, at least 1."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None, "checked by problems()"
        return max(1, round(self.epochs * samples_per_epoch / self.batch_size))

    def defaults(self) -> dict[str, Any]:
        """Returns the fields of `models.optim.groups.Defaults`."""
        names = ("lr", "weight_decay", "betas", "optimiser", "momentum", "no_decay")
        return {name: getattr(self, name) for name in names}

    def problems(self) -> list[str]:
        """Returns the invalid settings, one message each."""
        return [text for wrong, text in self._checks() if wrong]

    def _checks(self) -> list[tuple[bool, str]]:
        parts = self.num_workers * self.accumulate
        has = [name for name in ("steps", "epochs") if getattr(self, name) is not None]
        return [
            (len(has) != 1, f"set either `steps` or `epochs`; {'both are' if has else 'neither is'} set"),
            (self.steps is not None and self.steps < 1, f"steps must be at least 1, got {self.steps}"),
            (self.epochs is not None and self.epochs <= 0, f"epochs must be more than 0, got {self.epochs}"),
            (
                parts < 1,
                f"num_workers and accumulate must be at least 1, got {self.num_workers} and {self.accumulate}",
            ),
            (
                parts >= 1 and (self.batch_size < 1 or self.batch_size % parts != 0),
                f"batch_size must be a multiple of num_workers x accumulate = {parts}, got {self.batch_size}",
            ),
            (
                self.steps is not None and not 0 <= self.warmup_steps < max(self.steps, 1),
                f"warmup_steps must be at least 0 and less than steps = {self.steps}, got {self.warmup_steps}",
            ),
            (
                not 0 <= self.min_lr <= self.lr,
                f"min_lr must be at least 0 and at most lr = {self.lr}, got {self.min_lr}",
            ),
            (
                (self.schedule == "milestones") != bool(self.milestones),
                "`milestones` are the epochs at which schedule: milestones decays; set both or neither, got "
                f"schedule: {self.schedule} and milestones: {self.milestones}",
            ),
            (
                min(self.log_every, self.checkpoint_every, self.sample_steps) < 1,
                "log_every, checkpoint_every and sample_steps must be at least 1, "
                f"got {self.log_every}, {self.checkpoint_every} and {self.sample_steps}",
            ),
            (
                min(self.loader_threads, self.shuffle_window) < 1,
                "loader_threads and shuffle_window must be at least 1, "
                f"got {self.loader_threads} and {self.shuffle_window}",
            ),
            *(
                (
                    group.layer_decay is not None and not 0 < group.layer_decay <= 1,
                    f"groups: layer_decay must be above 0 and at most 1, got {group.layer_decay}",
                )
                for group in self.groups
            ),
            *(
                (
                    bool(group.below) and group.layer_decay is None,
                    f"groups: `below` needs layer_decay, got below {group.below} without it",
                )
                for group in self.groups
            ),
            (self.lr <= 0 and bool(self.groups), f"lr must be above 0 with groups, got {self.lr}"),
            (self.seed < 0, f"seed must be at least 0, got {self.seed}"),
        ]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What some of the steps train: these objectives, on these streams.

    weight: relative frequency of its steps. objectives: names of losses ("mlm") or classes ("masked_lm:MaskedLm") of the
    recipe's `objectives`. view: looked at by all of them; None for their own. streams: those that are made; empty for all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weight: float = 1.0
    objectives: list[str]
    view: str | None = None
    streams: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class InitPart:
    """A part of a new model that starts from a part of a trained one, all of whose tensors must fit.

    weights: a step's model, a folder, a hub id or a file. part: the name of the module there, such as "vision"; "" for all.
    into: its name here; None for the same. use: `module:Class`, for a file whose class its content does not tell.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    weights: Weights
    part: str = ""
    into: str | None = None
    use: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe(Spread, Optimisation):
    """The configuration of a training run: model, streams, objectives, teachers and data.

    BLIP's pretraining differs from the defaults: it does not clip gradients (`clip_norm: null`), and it applies weight
    decay to all parameters, scalars and vectors included, for which there is no option.
    """

    ADDED: ClassVar[frozenset[str]] = Optimisation.ADDED | {
        "train",
        "freeze",
        "init_parts",
        "group_by_length",
        "balance_tokens",
        "copies",
        "mesh",
        "keep_teachers",
        "adversarial",
        "processes",
        "least_processes",
    }

    # Model. `model`: {use: "blip:Blip", plus its parameters}; together with `init`, only the parameters that change.
    # `objectives`: "lm:Lm", or {use: "itc:Itc", weight: 1.0, view: "", plus its parameters}.
    objectives: list[str | dict[str, Any]]
    # Tasks: each optimiser step runs one, drawn by its weight (UNITER); without any, each step runs all objectives.
    tasks: dict[str, Task] = field(default_factory=dict)
    # Perturbed inputs, beside those as they are (VILLA); needs losses whose SCOPE is "sample".
    adversarial: Adversarial | None = None
    teachers: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # name -> {use: "teachers:Ema", plus its parameters}; Itc makes one named `ema` if it is not here
    keep_teachers: bool = False  # writes each teacher's copy as a model, to the artifact teachers/NAME
    model: dict[str, Any] | None = None
    init: Weights | None = (
        None  # start from these weights, and from their tokenizer unless `tokenizer` is set
    )
    # parts of a new model that start from parts of other models
    init_parts: list[InitPart] = field(default_factory=list)
    init_vit: Weights | None = (
        None  # initialise a new model's image encoder from a ViT with timm's parameter names (BLIP: DeiT-B/16)
    )
    init_bert: Weights | None = (
        None  # initialise a new model's text encoder from a BERT with the same vocabulary
    )
    train: list[str] = field(
        default_factory=list
    )  # globs of parameter names: only these are trained; default all
    freeze: list[str] = field(default_factory=list)  # globs of parameter names: these are not trained
    tokenizer: File | None = None  # a vocab.txt, or a folder that contains one

    # Data. A sample is an (image, text) pair ("pairs"), or an image with one of its texts, drawn in each epoch ("images").
    # A model that reads no text trains on all rows.
    texts: Literal["pairs", "images"] = "pairs"
    # column (list<int32>) with how often each text occurs per epoch, as `selection.soft_cap:Copies` makes it; null, or an
    # input without it: once. With "images", a text is drawn in proportion to it, and an image without any is left out.
    copies: str = ""
    # batches of samples of similar length, so that less is padded; within a shuffle window, their order is random
    group_by_length: bool = False
    # these batches have about the same number of padded tokens instead of the same number of samples; `batch_size` is a mean
    balance_tokens: bool = False
    mix: dict[str, float] = field(
        default_factory=dict
    )  # input step -> how often each of its samples occurs per epoch; default 1
    # Streams: stream -> parameters of its maker, such as {text: {max_length: 30, prompt: "a picture of "}} or
    # {image: {augment: {flip: true}}}; `use` replaces the maker. Views: view -> corruptors in order, such as
    # {mlm: ["mask_text:MaskText"]}; an objective with `view: mlm` looks at the corrupted streams.
    streams: dict[str, dict[str, Any]] = field(default_factory=dict)
    max_text_length: int | None = None  # short for streams.text.max_length
    prompt: str | None = None  # short for streams.text.prompt
    augment: dict[str, Any] | None = None  # short for streams.image.augment
    views: dict[str, list[str | dict[str, Any]]] = field(default_factory=dict)

    # Collapse alarm (`itm_alarm`) and memory
    on_collapse: Literal["warn", "fail"] = "warn"
    collapse_after: int = 1000  # steps after warm-up before the collapse alarm is active
    cache_bytes: int = 2 << 30  # per worker, for images of earlier shuffle windows
    # per worker, to decode and augment; 0: `loader_threads` threads do; default 0, on a GPU the worker's share of cores
    loader_processes: int | None = None
    window_bytes: int = 1 << 30  # per worker, max size of a shuffle window; the next one is read beside it
    # whether the workers search in each step for parameters without a gradient; None: as the first step of a run shows
    find_unused_parameters: bool | None = None
    # how workers divide the model; None: each has all of it (DistributedDataParallel)
    mesh: Mesh | None = None
    # that train this time; None: num_workers, which says which rows a step has and is part of the key, as this is not
    processes: int | None = None
    least_processes: int | None = None  # with which it goes on while a cluster lacks nodes for all; None: all

    def model_spec(self) -> dict[str, Any]:
        """Returns `model`, with the default class if it has no `use`."""
        return {"use": DEFAULT_MODEL} | (self.model or {})

    def stream_settings(self) -> dict[str, dict[str, Any]]:
        """Returns `streams`, with the parameters that have a short form."""
        found = {name: dict(spec) for name, spec in self.streams.items()}
        for short, (stream, parameter) in SHORT.items():
            if getattr(self, short) is not None:
                found.setdefault(stream, {})[parameter] = getattr(self, short)
        return found

    def objective_specs(self) -> list[tuple[float, str, dict[str, Any]]]:
        """Returns (weight, view, spec for `build`) of each objective."""
        specs = [spec_of(o) for o in self.objectives]
        return [(float(spec.pop("weight", 1.0)), str(spec.pop("view", "")), spec) for spec in specs]

    def task_of(self, step: int) -> str:
        """Returns the name of the task of an optimiser step, drawn from (seed, step) alone; "" without tasks."""
        if not self.tasks:
            return ""
        weights = np.array([task.weight for task in self.tasks.values()])
        drawn = np.random.default_rng((self.seed, TASK, step)).choice(len(weights), p=weights / weights.sum())
        return list(self.tasks)[int(drawn)]

    def _checks(self) -> list[tuple[bool, str]]:
        return [
            *super()._checks(),
            *(
                (task.weight <= 0, f"tasks.{name}: the weight must be above 0, got {task.weight}")
                for name, task in self.tasks.items()
            ),
            *(
                (
                    getattr(self, short) is not None and parameter in self.streams.get(stream, {}),
                    f"{short} is short for streams.{stream}.{parameter}; set one of the two",
                )
                for short, (stream, parameter) in SHORT.items()
            ),
            *(self.adversarial.problems() if self.adversarial else ()),
            (not self.objectives, 'objectives must have at least one entry, such as "lm:Lm"'),
            (
                self.model is None and self.init is None,
                "set `model` for a new model, or `init` to start from trained weights; neither is set",
            ),
            (
                self.init is not None
                and (self.init_vit is not None or self.init_bert is not None or bool(self.init_parts)),
                "init_vit, init_bert and init_parts are for a new model, but `init` is set; remove them, or `init`",
            ),
            (
                self.loader_processes is not None and self.loader_processes < 0,
                f"loader_processes must be at least 0, got {self.loader_processes}",
            ),
            (
                self.find_unused_parameters is False and (bool(self.tasks) or self.accumulate > 1),
                "find_unused_parameters: false does not go with `tasks` or accumulate above 1, where steps differ in the "
                "parameters that get a gradient",
            ),
            *((True, problem) for problem in self.worker_problems()),
            (self.balance_tokens and not self.group_by_length, "balance_tokens needs group_by_length: true"),
            (self.window_bytes < 1, f"window_bytes must be at least 1, got {self.window_bytes}"),
            (any(w < 0 for w in self.mix.values()), f"the weights in mix must be at least 0, got {self.mix}"),
        ]


def spec_of(entry: str | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the spec of a list entry in YAML: a string is the spec of that class without parameters."""
    return {"use": entry} if isinstance(entry, str) else dict(entry)


def mix_weight(mix: Mapping[str, float], name: str) -> float:
    """Returns the weight of input `name`, or of its base name for a repeated step (`filter` for `filter@2`); default 1."""
    return mix.get(name, mix.get(name.partition("@")[0], 1.0))
