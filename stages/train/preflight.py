"""Checks a recipe before the run (its parts exist and fit together) and estimates the cost of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlpipe.models.build import find
from vlpipe.models.experts.layer import spread_problem
from vlpipe.models.parallel.pipeline import need_pipeline
from vlpipe.models.parallel.tensor import tensor_problem
from vlpipe.models.tokenizer import SPECIAL, Tokenizer
from vlpipe.models.weightless import weightless
from vlpipe.pipeline.shard import need
from vlpipe.stages.common.row import TEXTS
from vlpipe.stages.loading.makers.base import Maker
from vlpipe.stages.train.build import (
    build_makers,
    build_model,
    build_net,
    build_objectives,
    build_tasks,
    build_views,
    load_tokenizer,
    optimiser_of,
)
from vlpipe.stages.train.recipe import MAKERS, MODELS, Recipe
from vlpipe.stages.train.workers.needs import need_the_same_step

TYPES = {"image": pa.binary(), "texts": TEXTS}  # columns whose type is known before any maker runs
BERT_VOCABULARY = 30524  # tokens; assumed if the tokenizer is made by an earlier step


def part_problems(recipe: Recipe) -> list[str]:
    """Returns error messages from building model, streams and objectives on the meta device; empty if they fit.

    With `init`, only the objectives are built: the model may come from an earlier step, see `after_problems`.
    """
    try:
        if recipe.init is None:
            _build(recipe)
        else:
            build_tasks(recipe, build_objectives(recipe))
    except (ValueError, TypeError, ImportError) as error:
        return [str(error)]
    return []


def after_problems(recipe: Recipe, stages: Mapping[str, Any]) -> list[str]:
    """Returns error messages from building a run with `init` on the meta device, with the model of the step above.

    stages: step name -> stage.
    """
    known = None if recipe.init is None else from_scratch(recipe, stages)
    try:
        if known is not None:
            _build(known)
    except (ValueError, TypeError, ImportError) as error:
        return [f"with the model of step {recipe.init.step if recipe.init else None!r}: {error}"]
    return []


def stand_in(recipe: Recipe, stages: Mapping[str, Any]) -> Any:
    """Returns the model that a recipe makes, on the meta device; None if it starts from files that no step above makes."""
    known = from_scratch(recipe, stages)
    if known is None:
        return None
    with weightless():
        return build_model(_without_files(known), _tokenizer(known))


def from_scratch(recipe: Recipe, stages: Mapping[str, Any]) -> Recipe | None:
    """Returns the recipe with the model and tokenizer of the steps that it starts from, and no `init`.

    None if it starts from files that no step above makes.
    """
    if recipe.init is None:
        return recipe
    above = stages.get(recipe.init.step or "")
    base = from_scratch(above, stages) if isinstance(above, Recipe) else None
    if base is None:
        return None
    model = {**base.model_spec(), **(recipe.model or {})}
    return replace(recipe, init=None, model=model, tokenizer=recipe.tokenizer or base.tokenizer)


def _build(recipe: Recipe) -> None:
    """Builds all parts of a run without `init` on the meta device. Raises ValueError if they do not fit."""
    tokenizer = _tokenizer(recipe)
    with weightless():
        net = build_net(_without_files(recipe), tokenizer)
    if (
        recipe.mesh is not None
        and recipe.mesh.tensor > 1
        and (problem := tensor_problem(net, recipe.mesh.tensor))
    ):
        raise ValueError(problem)
    if (
        recipe.mesh is not None
        and recipe.mesh.expert > 1
        and (problem := spread_problem(net, recipe.mesh.expert))
    ):
        raise ValueError(problem)
    if recipe.mesh is not None and recipe.mesh.pipeline > 1:
        need_pipeline(net, recipe.mesh.pipeline)
    for fewer in recipe.fewer():
        need_the_same_step(fewer, net)
    optimiser_of(net, recipe)
    build_views(recipe, build_makers(recipe, net.model, tokenizer))


def estimate(recipe: Recipe, num_rows: int) -> str:
    """Returns one line on the cost: steps, samples, workers, parameters, disk space of checkpoints.

    Assumes one sample per row. num_rows: 0 if unknown.
    """
    device = "GPU" if recipe.gpu else "CPU"
    parts = [
        _duration(recipe, num_rows),
        f"{recipe.num_workers} {device} worker(s), {recipe.micro_batch_size:,} samples at a time on each",
    ]
    if recipe.init is None:
        num_params, num_trained, num_bytes = _sizes(recipe)
        parts.append(f"{num_params / 1e6:.1f} M parameters, {3 * num_bytes / 1e9:.2f} GB for checkpoints")
        if recipe.mesh is not None and recipe.mesh.is_sharded:
            most = recipe.mesh.bytes_per_parameter * num_trained / 1e9
            parts.append(
                f"{most:.2f} GB of weights, gradients and moments per worker (ZeRO-{recipe.mesh.stage})"
            )
    return "; ".join(parts)


def _duration(recipe: Recipe, num_rows: int) -> str:
    if recipe.steps is None and not num_rows:
        return f"{recipe.epochs} epochs in batches of {recipe.batch_size:,}"
    steps = recipe.num_steps(num_rows)
    samples = steps * recipe.batch_size
    epochs = f" ({samples / num_rows:.1f} epochs of {num_rows:,} rows)" if num_rows else ""
    return f"{steps:,} steps of {recipe.batch_size:,} = {samples:,} samples{epochs}"


def _sizes(recipe: Recipe) -> tuple[int, int, int]:
    """Returns (number of model parameters, of trained ones, size of a checkpoint in bytes)."""
    with weightless():
        net = build_net(_without_files(recipe), _tokenizer(recipe))
    weights = sum(value.nbytes for value in net.state_dict().values())
    trained = [p for p in net.parameters() if p.requires_grad]
    moments = sum(2 * p.nbytes for p in trained)
    num = sum(p.numel() for p in net.model.parameters())
    return num, sum(p.numel() for p in trained), weights + moments


def _without_files(recipe: Recipe) -> Recipe:
    """Returns the recipe without weight files, because the meta device has no memory to load them into."""
    return replace(recipe, init_vit=None, init_bert=None, init_parts=[])


def _tokenizer(recipe: Recipe) -> Tokenizer | None:
    """Returns the recipe's tokenizer, or one of BERT's size with placeholder tokens if an earlier step makes it."""
    file = recipe.tokenizer
    if file is None:
        return None
    if file.step is None and Path(file.path).exists():
        return load_tokenizer(recipe)
    return _placeholder()


@cache
def _placeholder() -> Tokenizer:
    """Returns a tokenizer of BERT's size without words. Made once: a plan with a matrix asks for it hundreds of times."""
    return Tokenizer.from_tokens([*SPECIAL, *(f"[unused{i}]" for i in range(BERT_VOCABULARY - len(SPECIAL)))])


def need_columns(recipe: Recipe, schema: pa.Schema) -> None:
    """Raises SchemaError if `schema` lacks a column that the recipe's makers read.

    With `init` and without `model: {use: ...}`, the class is known only when the step runs; then only `id` is needed.
    """
    need(schema, "Train", id=pa.string())
    if recipe.copies in schema.names:
        need(schema, "Train", **{recipe.copies: pa.list_(pa.int32())})
    for maker in maker_classes(recipe):
        for column in maker.COLUMNS:
            need(schema, "Train", **{column: TYPES.get(column) or column_type(schema, column)})
        if maker.NEEDS_TEXT:
            need(schema, "Train", texts=TEXTS)


def column_type(schema: pa.Schema, name: str) -> pa.DataType:
    """Returns the type of a column; null if it is not there, which `need` then says."""
    return schema.field(name).type if name in schema.names else pa.null()


def maker_classes(recipe: Recipe) -> list[type[Maker]]:
    """Returns the class of each stream's maker, without building a model."""
    use = (recipe.model or {}).get("use")
    if recipe.init is not None and use is None:
        return []
    streams = find(recipe.model_spec()["use"], MODELS).STREAMS
    return [
        find(recipe.stream_settings().get(name, {}).get("use", maker), MAKERS)
        for name, maker in streams.items()
    ]
