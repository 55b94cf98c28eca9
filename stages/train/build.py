"""Builds the model, streams, objectives, teachers and optimiser of a training run from its `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from vlpipe.models.adversarial.config import Adversarial
from vlpipe.models.adversarial.losses import perturbed_counts, perturbed_losses, perturbed_values
from vlpipe.models.adversarial.perturb import Perturbations
from vlpipe.models.build import build, find
from vlpipe.models.folder import copy_part, load
from vlpipe.models.interface.batch import Batch
from vlpipe.models.interface.capabilities import need
from vlpipe.models.interface.objective import Objective, Term
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.optim.frozen import evaluate_frozen, freeze
from vlpipe.models.optim.groups import Defaults, build_optimiser
from vlpipe.models.teachers import Ema
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import did_you_mean
from vlpipe.stages.loading.corruptors.base import Corruptor
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.loading.makers.image import Image
from vlpipe.stages.train.recipe import (
    CORRUPTORS,
    MAKERS,
    MODELS,
    OBJECTIVES,
    TEACHERS,
    Optimisation,
    Recipe,
    spec_of,
)
from vlpipe.stages.train.workers.needs import need_the_same_step

Values = dict[str, Term | Tensor]  # name -> loss or diagnostic
Routes = Mapping[str, Sequence[tuple[str, int]]]  # task -> (view, index of an objective) of each that it runs


class Net(nn.Module):
    """The model, its teachers and objectives as one module, so that DistributedDataParallel, FSDP2 and compile see all.

    objectives: (weight, view, objective). tasks: see `build_tasks`; None: one task "" of all objectives. Raises
    ValueError if two objectives return a loss of the same name, or the model lacks what an objective needs.
    """

    SURROGATE = "feature gradients"

    def __init__(
        self,
        model: Any,
        objectives: Sequence[tuple[float, str, Objective]],
        teachers: Mapping[str, Ema] | None = None,
        tasks: Routes | None = None,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        self.adversarial = adversarial
        self.tasks = tasks or {"": [(view, i) for i, (_, view, _) in enumerate(objectives)]}
        self.model = model
        self.teachers = nn.ModuleDict(teachers or {})
        self.objectives = nn.ModuleList(objective for _, _, objective in objectives)
        for _, _, objective in objectives:
            need(model, objective.NEEDS, f"objectives: {type(objective).__name__}")
        for teacher in self._emas().values():
            teacher.bind(model)
        self.losses: dict[str, tuple[int, float]] = {}  # name -> (index of its objective, weight)
        for i, (weight, view, objective) in enumerate(objectives):
            objective.view = view
            objective.bind(model)
            for name in objective.LOSSES:
                if name in self.losses:
                    raise ValueError(
                        f"objectives: two objectives return a loss named {name!r}; loss names must be unique"
                    )
                self.losses[name] = (i, weight)
        self.leads_teachers = (
            True  # False: who calls this lets teachers follow, before the first pass of a step
        )
        if adversarial is not None:
            self.losses |= perturbed_losses(self.losses, self.all_objectives(), adversarial)
        self.constrain()

    def forward(
        self,
        batch: Batch,
        feature_grads: Mapping[tuple[str, str], Tensor] | None = None,
        features: Sequence[tuple[str, str]] = (),
        perturbations: Perturbations | None = None,
    ) -> Any:
        """Returns name -> Term of each loss and diagnostic, or a scalar. Teachers follow the model once per step.

        feature_grads: (view, feature) -> gradient of the losses of the whole batch (see `gradients`). Those losses are left
        out then, and the value SURROGATE, a scalar with that gradient, is added.
        features: (view, feature) of those that are returned, in a list, in place of losses.
        perturbations: the losses with these are added, and their KL to the predictions without, see `adversarial.config`.
        """
        if features:
            out = self.outputs(batch)
            return [out.view(view).feature(name) for view, name in features]
        if perturbations is not None:
            if batch.step.micro == 0 and self.leads_teachers and not perturbations.deltas:
                self.update_teachers()
            return perturbed_values(self, batch, self.active(batch.task), perturbations)
        if feature_grads is None:
            if batch.step.micro == 0 and self.leads_teachers:
                self.update_teachers()
            return self._values(self.outputs(batch), self.active(batch.task))
        out = self.outputs(batch)
        # the features first, in the order in which they were cached: they get the same dropout masks
        surrogate = sum((out.view(v).feature(n) * g).sum() for (v, n), g in feature_grads.items())
        values = self._values(out, [(v, o) for v, o in self.active(batch.task) if o.SCOPE != "batch"])
        untouched = [p for o in self.all_objectives() for p in o.parameters()]
        untouched += [p for name, p in self.model.named_parameters() if p.numel() == 1]  # temperatures
        # their gradient is there already, but DistributedDataParallel exchanges only those that this pass reaches
        for parameter in untouched:
            surrogate = surrogate + 0.0 * parameter.sum()
        return {**values, self.SURROGATE: surrogate}

    def train(self, mode: bool = True) -> Net:
        """As in torch, but frozen parts of the model, and of its teachers, stay in evaluation mode."""
        super().train(mode)
        evaluate_frozen(self.model)
        for teacher in self._emas().values():
            teacher.evaluate_as(self.model)
        return self

    def update_teachers(self) -> None:
        """Moves the teachers towards the model, in training mode."""
        if self.training:
            for teacher in self._emas().values():
                teacher.follow(self.model)

    def outputs(self, batch: Batch) -> Outputs:
        """Returns the lazy outputs of a batch."""
        return Outputs(self.model, batch, {name: teacher.copy for name, teacher in self._emas().items()})

    @staticmethod
    def _values(out: Outputs, active: Sequence[tuple[str, Objective]]) -> Values:
        values: Values = {}
        for view, objective in active:
            values |= objective(out.view(view))
        return values

    def _emas(self) -> dict[str, Any]:
        return dict(self.teachers.items())

    def all_objectives(self) -> list[Any]:
        return list(self.objectives)

    def active(self, task: str) -> list[tuple[str, Any]]:
        """Returns (view, objective) of those that a task runs."""
        return [(view, self.objectives[i]) for view, i in self.tasks[task]]

    def views_of(self, task: str) -> list[str]:
        """Returns the views that the objectives of a task look at."""
        return sorted({view for view, _ in self.tasks[task] if view})

    def counts(self, batch: Batch) -> dict[str, Tensor | float]:
        """Returns the count of each loss of a batch, without a forward pass."""
        found: dict[str, Tensor | float] = {}
        for view, objective in self.active(batch.task):
            found |= dict.fromkeys(objective.LOSSES, float(len(batch)))
            found |= objective.counts(batch.view(view))
        if self.adversarial is not None:
            found |= perturbed_counts(found, self.adversarial, batch.step.number)
        return found

    def constrain(self) -> None:
        """Called before the first and after each optimiser step."""
        self.model.constrain()


def load_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Returns the tokenizer of the field `tokenizer`; if it is not set, the one stored with `init`; else None."""
    source = recipe.tokenizer or recipe.init
    if source is None:
        return None
    if Path(source.path).is_file():
        return Tokenizer.from_vocab(source.path)
    if recipe.tokenizer is None and not Tokenizer.is_in(source.path):
        return None  # a model that reads no text
    return Tokenizer.load(source.path)


def build_model(recipe: Recipe, tokenizer: Tokenizer | None) -> Any:
    """Returns a new model as configured in `model`, or the trained model of `init`.

    With `init`, the parameters in `model` replace its own. Raises ValueError if the model of `init` and the
    tokenizer differ in vocabulary size.
    """
    if recipe.init is None:
        return _new_model(recipe, tokenizer)
    changes = {key: value for key, value in (recipe.model or {}).items() if key != "use"}
    use = (recipe.model or {}).get("use")
    model = load(recipe.init.path, use=use, **changes)
    has = getattr(model.config, "vocab_size", None)
    if has is not None and (tokenizer is None or has != tokenizer.vocab_size):
        got = 0 if tokenizer is None else tokenizer.vocab_size
        raise ValueError(
            f"tokenizer: the vocabulary has {got} tokens, but the model of `init` has {has}; leave out `tokenizer` to use "
            "the one stored with `init`"
        )
    return model


def _new_model(recipe: Recipe, tokenizer: Tokenizer | None) -> Any:
    from vlpipe.models.systems.image_text.blip.checkpoints import init_bert, init_vit

    cls = find(recipe.model_spec()["use"], MODELS)
    if "text" in cls.STREAMS and tokenizer is None:
        raise ValueError(
            f"{cls.__name__} reads texts: set `tokenizer`, or `init` to use the tokenizer stored with it; neither is set"
        )
    model = build(recipe.model_spec(), MODELS, tokenizer=tokenizer)
    for part in recipe.init_parts:
        source = load(part.weights.path, use=part.use)
        copy_part(model, source, part.part, part.part if part.into is None else part.into)
    if recipe.init_vit is not None:
        init_vit(model, recipe.init_vit.path)
    if recipe.init_bert is not None:
        assert tokenizer is not None  # a Blip reads texts
        init_bert(model, recipe.init_bert.path, tokenizer)
    return model


def build_objectives(recipe: Recipe) -> list[tuple[float, str, Any]]:
    """Returns (weight, view, objective) in the order of the recipe. Raises ValueError for a view that is not in `views`."""
    found = []
    for weight, view, spec in recipe.objective_specs():
        if view and view not in recipe.views:
            raise ValueError(
                f"objectives: {spec['use']} looks at view {view!r}, which `views` does not have"
                f"{did_you_mean(view, recipe.views)}"
            )
        found.append((weight, view, build(spec, OBJECTIVES)))
    return found


def build_tasks(
    recipe: Recipe, objectives: Sequence[tuple[float, str, Any]]
) -> dict[str, list[tuple[str, int]]]:
    """Returns task -> (view, index in `objectives`) of each objective that it runs; empty without tasks.

    Raises ValueError for a name that is no objective or view, and for an objective that no task runs.
    """
    uses = [spec["use"] for _, _, spec in recipe.objective_specs()]
    names = [{use, *objective.LOSSES} for use, (_, _, objective) in zip(uses, objectives, strict=True)]
    known = sorted(set().union(*names))
    found: dict[str, list[tuple[str, int]]] = {}
    for name, task in recipe.tasks.items():
        for wanted in task.objectives:
            if wanted not in known:
                raise ValueError(
                    f"tasks.{name}: no objective is or returns {wanted!r}{did_you_mean(wanted, known)}; "
                    f"there are {', '.join(known)}"
                )
        if task.view and task.view not in recipe.views:
            raise ValueError(
                f"tasks.{name}: `views` has no view {task.view!r}{did_you_mean(task.view, recipe.views)}"
            )
        runs = [i for i, own in enumerate(names) if own & set(task.objectives)]
        if not runs:
            raise ValueError(f"tasks.{name}: wanted at least one objective, got none")
        found[name] = [(objectives[i][1] if task.view is None else task.view, i) for i in runs]
    idle = set(range(len(names))) - {i for runs in found.values() for _, i in runs} if found else set()
    if idle:
        raise ValueError(f"tasks: none runs {', '.join(uses[i] for i in sorted(idle))}")
    return found


def build_makers(recipe: Recipe, model: Any, tokenizer: Tokenizer | None) -> dict[str, Maker]:
    """Returns stream -> maker: those of the model, with the parameters of the recipe's `streams`.

    Raises ValueError for a stream that the model does not read, or a parameter that its maker does not have.
    """
    specs: dict[str, dict[str, Any]] = model.streams()
    settings = recipe.stream_settings()
    named = [("streams", name) for name in settings]
    named += [(f"tasks.{task}.streams", name) for task, one in recipe.tasks.items() for name in one.streams]
    for where, name in named:
        if name not in specs:
            raise ValueError(
                f"{where}: {type(model).__name__} reads no stream {name!r}{did_you_mean(name, specs)}; "
                f"it reads {', '.join(specs)}"
            )
    makers: dict[str, Maker] = {
        name: _made({**spec, **settings.get(name, {})}, MAKERS, f"streams.{name}", tokenizer)
        for name, spec in specs.items()
    }
    pictures = [name for name, maker in makers.items() if isinstance(maker, Image)]
    if recipe.balance_tokens and pictures:
        raise ValueError(
            f"balance_tokens: pictures (stream {pictures[0]!r}) have a fixed number of positions, which are not counted, so "
            "batches of short texts would have many pictures; use group_by_length alone"
        )
    return makers


def build_views(recipe: Recipe, makers: Mapping[str, Maker]) -> dict[str, list[Corruptor]]:
    """Returns view -> its corruptors. Raises ValueError for one that changes a stream the model does not read."""
    views: dict[str, list[Corruptor]] = {}
    for view, entries in recipe.views.items():
        views[view] = [_made(spec_of(entry), CORRUPTORS, f"views.{view}", None) for entry in entries]
        for corruptor in views[view]:
            stream = getattr(corruptor, "stream", None)
            if stream is not None and stream not in makers:
                raise ValueError(
                    f"views.{view}: {type(corruptor).__name__} changes stream {stream!r}, but the model reads "
                    f"{', '.join(makers)}"
                )
    return views


def _made(spec: Mapping[str, Any], below: str, where: str, tokenizer: Tokenizer | None) -> Any:
    """Builds a maker or corruptor: a dataclass whose fields are checked and converted from YAML by their types."""
    cls = find(spec["use"], below)
    name = spec["use"].partition(":")[2]
    given = {key: value for key, value in spec.items() if key != "use"}
    if not is_dataclass(cls):
        return build(spec, below)
    names = [f.name for f in fields(cls)]
    for key in given:
        if key not in names or key == "tokenizer":
            raise ValueError(f"{where}: {name} has no parameter {key!r}{did_you_mean(key, names)}")
    if "tokenizer" in names:
        if tokenizer is None:
            raise ValueError(f"{where}: {name} needs a tokenizer; set `tokenizer`")
        given["tokenizer"] = tokenizer
    try:
        return TypeAdapter(cls).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(map(str, first["loc"]))
        reason = str(first.get("ctx", {}).get("error", first["msg"]))  # of a ValueError, its own text
        raise ValueError(": ".join(part for part in (where, at, reason) if part)) from error


def build_net(recipe: Recipe, tokenizer: Tokenizer | None) -> Net:
    """Returns model, teachers and objectives in training mode. Raises ValueError if they do not fit each other."""
    model = build_model(recipe, tokenizer)
    if recipe.train or recipe.freeze:
        freeze(model, train=recipe.train, freeze=recipe.freeze)
    teachers = {
        name: build({"use": "teachers:Ema", **spec}, TEACHERS) for name, spec in recipe.teachers.items()
    }
    objectives = build_objectives(recipe)
    for _, _, objective in objectives:
        for feature in objective.FEATURES:
            teacher, dot, _ = feature.partition(".")
            if dot and teacher not in teachers:
                teachers[teacher] = Ema(**objective.TEACHER)
    tasks = build_tasks(recipe, objectives)
    net = Net(model, objectives, teachers, tasks, recipe.adversarial).train()
    need_the_same_step(recipe, net)
    return net


def optimiser_of(net: nn.Module, recipe: Optimisation) -> Any:
    """Returns the optimiser of all trained parameters. Raises ValueError if a group matches none."""
    return build_optimiser(net, Defaults(**recipe.defaults()), recipe.groups)
