"""Builds the model, tokenizer, objectives and optimiser of a training run from its `Recipe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlpipe.models.build import build, find
from vlpipe.models.features import Features
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.train.recipe import MODELS, OBJECTIVES, Optimisation, Recipe


class Net(nn.Module):
    """The model and its training objectives as one module, since DistributedDataParallel wraps a single module.

    objectives: (weight, objective) pairs. Raises ValueError if two objectives return a loss of the same name.
    """

    def __init__(self, model: Any, objectives: list[tuple[float, Any]]) -> None:
        super().__init__()
        self.model = model
        self.objectives = nn.ModuleList(objective for _, objective in objectives)
        for _, objective in objectives:
            objective.bind(model)
        self.losses: dict[str, tuple[int, float]] = {}  # name -> (index of its objective, weight)
        for i, (weight, objective) in enumerate(objectives):
            for name in objective.LOSSES:
                if name in self.losses:
                    raise ValueError(
                        f"objectives: two objectives return a loss named {name!r}; loss names must be unique"
                    )
                self.losses[name] = (i, weight)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns name -> scalar for all objectives: unweighted losses and diagnostics. batch: see `Loader.batches`."""
        features = Features(self.model, batch)
        values: dict[str, Tensor] = {}
        for objective in self._objectives():
            values |= objective(self.model, batch, features)
        return values

    def _objectives(self) -> list[Any]:
        return list(self.objectives)

    def num_terms(self, batch: Mapping[str, Any]) -> list[float]:
        """Returns, per objective, the number of terms its loss is a mean of: its `num_terms(batch)`, else the batch size."""
        return [
            float(o.num_terms(batch) if hasattr(o, "num_terms") else len(batch["image_id"]))
            for o in self._objectives()
        ]


def load_tokenizer(recipe: Recipe) -> Tokenizer:
    """Returns the tokenizer of the field `tokenizer`, or if it is not set, the one stored with `init`."""
    source = recipe.tokenizer or recipe.init
    assert source is not None, "checked by problems()"
    return Tokenizer.from_vocab(source.path) if Path(source.path).is_file() else Tokenizer.load(source.path)


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    """Returns a new model as configured in `model`, or the trained model of `init`.

    With `init`, the parameters in `model` replace its own. Raises ValueError if the model of `init` and the
    tokenizer differ in vocabulary size.
    """
    if recipe.init is None:
        return _new_model(recipe, tokenizer)
    spec = recipe.model_spec()
    changes = {key: value for key, value in spec.items() if key != "use"}
    model = find(spec["use"], MODELS).load(recipe.init.path, **changes)
    if model.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"tokenizer: the vocabulary has {tokenizer.vocab_size} tokens, but the model of `init` has "
            f"{model.config.vocab_size}; leave out `tokenizer` to use the one stored with `init`"
        )
    return model


def _new_model(recipe: Recipe, tokenizer: Tokenizer) -> Any:
    from vlpipe.models.checkpoints import init_bert, init_vit

    model = build(recipe.model_spec(), MODELS, tokenizer=tokenizer)
    if recipe.init_vit is not None:
        init_vit(model, recipe.init_vit.path)
    if recipe.init_bert is not None:
        init_bert(model, recipe.init_bert.path)
    return model


def build_objectives(recipe: Recipe) -> list[tuple[float, Any]]:
    """Returns (weight, objective) pairs in the order of the recipe."""
    return [(weight, build(spec, OBJECTIVES)) for weight, spec in recipe.objective_specs()]


def build_net(recipe: Recipe, tokenizer: Tokenizer) -> Net:
    """Returns model and objectives in training mode.

    Raises ValueError if they do not fit the tokenizer, `max_text_length` or `prompt`.
    """
    model = build_model(recipe, tokenizer)
    if recipe.max_text_length > model.config.max_text_length:
        raise ValueError(
            f"max_text_length must be at most {model.config.max_text_length}, the number of text positions of the model, "
            f"got {recipe.max_text_length}"
        )
    net = Net(model, build_objectives(recipe))
    wanted = 1 + len(tokenizer.ids(recipe.prompt))
    for objective in net.objectives:
        if recipe.prompt and getattr(objective, "prompt_length", wanted) not in (0, wanted):
            raise ValueError(
                f"prompt_length must be {wanted}, the number of tokens of `prompt` ({recipe.prompt!r}) plus 1 for [DEC], "
                f"got {objective.prompt_length}"
            )
    return net.train()


def decay_groups(net: nn.Module, no_decay: Sequence[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Returns (parameters with weight decay, parameters without).

    Scalars, vectors and parameters whose name contains an entry of `no_decay` get none. BLIP decays all parameters.
    Raises ValueError if an entry of `no_decay` matches no parameter.
    """
    params = {name: p for name, p in net.named_parameters() if p.requires_grad}
    for part in no_decay:
        if not any(part in name for name in params):
            some = ", ".join(list(params)[:5])
            raise ValueError(f"no_decay: no parameter name contains {part!r}; the names include {some}")
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, p in params.items():
        is_vector = sum(size > 1 for size in p.shape) <= 1  # true for a class token (1, 1, D) as well
        groups[is_vector or any(part in name for part in no_decay)].append(p)
    return groups


def build_optimiser(net: nn.Module, recipe: Optimisation) -> torch.optim.AdamW:
    """Returns AdamW with the two parameter groups of `decay_groups`."""
    decayed, others = decay_groups(net, recipe.no_decay)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=recipe.lr,
        betas=recipe.betas,
        fused=True,  # one kernel call instead of ten per parameter: small models are bound by launch overhead
    )
