"""The training state of one worker: what a step reads and updates, and what a checkpoint stores of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from vlpipe.models import distributed
from vlpipe.models.experts.layer import experts_of, spread_problem
from vlpipe.models.optim.frozen import frozen_names, restore, trained_state
from vlpipe.models.optim.groups import Several
from vlpipe.models.parallel.mesh import Mesh
from vlpipe.models.parallel.pipeline import Pipeline, need_pipeline
from vlpipe.models.parallel.sharded import Sharded
from vlpipe.models.parallel.tensor import cut
from vlpipe.models.recompute import recompute_layers
from vlpipe.models.trial import FEW, losses_and_gradient, unchanged
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.stage import Dataset
from vlpipe.stages.train.build import (
    build_makers,
    build_net,
    build_views,
    load_tokenizer,
    optimiser_of,
)
from vlpipe.stages.train.itm_alarm import LossRow
from vlpipe.stages.train.loader import Loader
from vlpipe.stages.train.recipe import Optimisation, Recipe
from vlpipe.stages.train.runtime import pick_device, seed_all
from vlpipe.stages.train.workers.divided import restore_parts

# torch 2.13 renames the option and warns about the old name
SYNC_BUFFERS = (
    "forward_sync_buffers"
    if "forward_sync_buffers" in signature(DistributedDataParallel).parameters
    else "broadcast_buffers"
)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_of(recipe: Optimisation, device: torch.device) -> torch.dtype:
    """Returns the type of the forward pass under autocast; float32 for none."""
    auto = "fp32"
    if device.type == "cuda":
        auto = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return DTYPES[auto if recipe.precision == "auto" else recipe.precision]


@dataclass
class Run:
    """The training state of one worker.

    step: number of completed steps. rows: logged losses. sums: name -> sum of a loss or diagnostic over those of the steps
    since the last log that computed it; num_summed: name -> number of these steps. unchecked: (step, values) of the steps
    whose loss and gradient have not been checked to be finite.
    """

    recipe: Optimisation
    device: torch.device
    net: Any  # a Net, or an object with the same forward, losses, counts and constrain
    loader: Any  # a Loader, or an object with the same batches and samples_per_epoch
    num_steps: int
    sharded: Sharded | None = None  # `net`, divided among workers
    pipeline: Pipeline | None = None  # what has the other layers of `net`
    streams: int | None = None  # how many workers' rows a step has; None: those of as many as now
    step: int = 0
    rows: list[LossRow] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)
    num_summed: dict[str, Any] = field(default_factory=dict)  # ints, or scalar tensors
    unchecked: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimiser = optimiser_of(self.net, self.recipe)
        self.frozen = _frozen(self.net)
        self.parallel: Any = None  # see `join_ranks`
        if self.recipe.recompute:
            recompute_layers(self.net.model)
        # fp16 has few exponents: small gradients become 0 without it
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def join_ranks(self, batch: Any) -> None:
        """Sets `parallel`: the net as the steps call it, with an exchange of gradients on several ranks.

        batch: of the first step. On several ranks some of its samples pass forward and backward, which changes no state; all
        ranks must call this together.
        """
        self.parallel = self.net if self.sharded is None else self.sharded
        if self.pipeline is not None:
            return
        if self.sharded is not None:
            if self.recipe.compile:
                self.sharded.call = torch.compile(self.net)
            return
        if distributed.world_size() > 1:
            some_unused = self._some_get_no_gradient(batch)
            self.parallel = DistributedDataParallel(
                self.net,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                find_unused_parameters=some_unused,
                # feature queues are equal on all ranks already, and syncing them would send 100 MB per step; batch norms
                # keep the statistics of their rank
                **{SYNC_BUFFERS: False},  # type: ignore[arg-type]
            )
            if not some_unused:
                # its first pass puts the gradients into another order; a resumed run needs that before its first step, too
                with unchanged(self.net):
                    losses_and_gradient(self.net, batch.rows(slice(FEW)), self.dtype, self.parallel)
        if self.recipe.compile:
            self.parallel = torch.compile(self.parallel)

    def _some_get_no_gradient(self, batch: Any) -> bool:
        """Returns whether some parameters may get no gradient in some step, so that each step has to search for them.

        It is tried with a few samples; tasks differ, and the gradient cache gives some parameters theirs beforehand.
        """
        if not isinstance(self.recipe, Recipe) or self.recipe.tasks or self.recipe.micro_batches > 1:
            return True
        if self.recipe.find_unused_parameters is not None:
            return self.recipe.find_unused_parameters
        with unchanged(self.net):
            losses_and_gradient(self.net, batch.rows(slice(FEW)), self.dtype)
            missing = any(p.requires_grad and p.grad is None for p in self.net.parameters())
        return bool(distributed.total(torch.tensor(float(missing), device=self.device)))

    @property
    def is_cut(self) -> bool:
        """Whether workers share the rows of a batch, each with a part of each layer, or some of the layers."""
        mesh = self.recipe.mesh if isinstance(self.recipe, Recipe) else None
        return mesh is not None and mesh.tensor * mesh.pipeline > 1

    @property
    def is_divided(self) -> bool:
        """Whether no worker has the whole state."""
        return self.sharded is not None or self.pipeline is not None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the forward pass under autocast; float32 for none."""
        return precision_of(self.recipe, self.device)

    def autocast(self) -> torch.autocast:
        """Returns the context of a forward pass."""
        # a GPU has no autocast to float32, disabled or not
        kind = torch.bfloat16 if self.dtype == torch.float32 else self.dtype
        return torch.autocast(self.device.type, kind, enabled=self.dtype != torch.float32)

    def optimisers_with_gradient(self) -> list[torch.optim.Optimizer]:
        """Returns the optimisers, of which each trains its own parameters, that have something to do in this step."""
        found = self.optimiser.optimisers if isinstance(self.optimiser, Several) else [self.optimiser]
        return [o for o in found if any(p.grad is not None for g in o.param_groups for p in g["params"])]

    def state(self) -> dict[str, Any]:
        """Returns all that the next step depends on. Random generators are not included: each step seeds them anew."""
        return {
            "step": self.step,
            "net": trained_state(self.net.state_dict(), self.frozen),  # includes momentum encoders and queues
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),  # empty without loss scaling
            "rows": self.rows,
            "sums": self.sums,
            "num_summed": self.num_summed,
            "streams": self.streams or distributed.world_size(),
        }

    def states(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Yields (parameter, its state in its optimiser)."""
        optimisers = self.optimiser.optimisers if isinstance(self.optimiser, Several) else [self.optimiser]
        for one in optimisers:
            for group in one.param_groups:
                for p in group["params"]:
                    yield p, one.state[p]

    def share_sums(self) -> None:
        """Makes `sums` equal on all ranks, whose mean is what is logged: a checkpoint holds those of one."""
        if self.sums and distributed.world_size() > 1:
            whole = distributed.total(torch.stack(list(self.sums.values()))) / distributed.world_size()
            self.sums = dict(zip(self.sums, whole.unbind(), strict=True))

    def restore(self, state: Mapping[str, Any]) -> None:
        """Sets this state to one that `state()` returned, of which a divided net takes its part."""
        self.step, self.streams = state["step"], state.get("streams")
        self.num_summed = {
            name: n.to(self.device) if isinstance(n, Tensor) else n for name, n in state["num_summed"].items()
        }
        self.rows = [(step, name, value) for step, name, value in state["rows"]]
        self.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        if self.is_divided:
            restore_parts(self, state)
            return
        restore(self.net, state["net"], self.frozen)
        self.optimiser.load_state_dict(state["optimiser"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def _frozen(net: Any) -> set[str]:
    """Returns the entries of the state of `net` that training does not change, those of its teachers included."""
    own = frozen_names(net.model)
    return {
        name for name in net.state_dict() if name.removeprefix("model.") in own or _in_teacher(name) in own
    }


def _in_teacher(name: str) -> str:
    """Returns the name that an entry of a teacher's copy has in the model; "" for others."""
    return name.partition(".copy.")[2] if name.startswith("teachers.") else ""


def prepare(recipe: Recipe, inputs: Sequence[Dataset]) -> Run:
    """Returns the state before step 0, equal on all ranks.

    Raises VlpipeError if the warm-up is not shorter than the run.
    """
    device = pick_device(recipe.gpu)
    seed_all(recipe.seed, "start")
    tokenizer = load_tokenizer(recipe)
    net = build_net(recipe, tokenizer)
    sharded = None if recipe.mesh is None else divided(net, recipe, recipe.mesh, device)
    pipeline = None if recipe.mesh is None else pipelined(net, recipe, recipe.mesh, device)
    if sharded is None and pipeline is None:
        net = net.to(device)
    makers = build_makers(recipe, net.model, tokenizer)
    views = {task: net.views_of(task) for task in net.tasks}
    loader = Loader(inputs, recipe, tokenizer, makers, build_views(recipe, makers), views)
    num_steps = recipe.num_steps(loader.samples_per_epoch)
    if recipe.warmup_steps >= num_steps:
        raise VlpipeError(
            f"warmup_steps must be less than the {num_steps} steps of the run, got {recipe.warmup_steps}"
        )
    return Run(recipe, device, net, loader, num_steps, sharded, pipeline, recipe.num_workers)


def pipelined(net: Any, recipe: Recipe, mesh: Mesh, device: torch.device) -> Pipeline | None:
    """Leaves in `net` the layers of this worker's part; returns the pipeline, or None if the mesh has none.

    Raises VlpipeError if the model cannot be divided in this way, or the precision is fp16.
    """
    if mesh.pipeline == 1:
        return None
    try:
        need_pipeline(net, mesh.pipeline)
    except ValueError as error:
        raise VlpipeError(str(error)) from error
    _need_no_fp16(recipe, device, "pipeline")
    shape = (mesh.pipeline, mesh.replicas(distributed.world_size()))
    pipeline = Pipeline(
        net, init_device_mesh(device.type, shape, mesh_dim_names=("pipeline", "data")), device
    )
    distributed.use(pipeline.rows)
    return pipeline


def _need_no_fp16(recipe: Recipe, device: torch.device, what: str) -> None:
    if precision_of(recipe, device) == torch.float16:
        raise VlpipeError(
            f"mesh: this GPU has no bf16, and `{what}` does not go with fp16; set precision: fp32"
        )


def divided(net: Any, recipe: Recipe, mesh: Mesh, device: torch.device) -> Sharded | None:
    """Divides `net` among workers as the mesh says; returns what calls it then, or None if each worker has all of it.

    Raises VlpipeError if there are fewer or more workers than in the mesh, or the precision is fp16.
    """
    num = distributed.world_size()
    if problems := mesh.problems(num):
        raise VlpipeError(f"{problems[0]}; {num} worker(s) run")
    if mesh.expert > 1:
        if problem := spread_problem(net, mesh.expert):
            raise VlpipeError(problem)
        groups = init_device_mesh(
            device.type, (num // mesh.expert, mesh.expert), mesh_dim_names=("group", "expert")
        )
        for layer in experts_of(net).values():
            layer.spread(groups["expert"].get_group())
    if not mesh.is_sharded:
        return None
    _need_no_fp16(recipe, device, "shard")
    dtype = precision_of(recipe, device)
    shape = (mesh.replicas(num), mesh.shard, mesh.tensor)
    grid = init_device_mesh(device.type, shape, mesh_dim_names=("data", "shard", "tensor"))
    net.leads_teachers = False
    if mesh.tensor > 1:
        cut(net, grid["tensor"])
    rows = grid["shard"] if shape[0] == 1 else grid["data", "shard"]
    sharded = Sharded(
        net,
        rows,
        stage=mesh.stage,
        dtype=dtype if mesh.half and dtype != torch.float32 else None,
        # losses of the whole batch are computed outside of the net's forward pass with several micro-batches
        whole=[p for o in net.objectives if o.SCOPE == "batch" for p in o.parameters()],
    )
    distributed.use(sharded.group)
    return sharded
