"""Low-rank adapters of a language model, by the library peft. Hu et al. 2021 (LoRA), https://arxiv.org/abs/2106.09685."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vlpipe.models.blocks.frozen.language_model import LanguageModel

BASE, ADAPTER = ".base_layer.", "lora_"


def adapt(llm: LanguageModel, spec: Mapping[str, Any]) -> None:
    """Puts adapters into the linear layers that `spec` names; they start as no change, and the other weights are frozen.

    spec: of peft's LoraConfig, such as {r: 16, lora_alpha: 32, target_modules: [q_proj, v_proj]}. Raises ValueError if peft
    is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError("lora: this needs peft: pip install 'vlpipe[lora]'") from error
    inject_adapter_in_model(LoraConfig(**spec), llm.net)


def with_adapters(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Returns saved weights without adapters as a model with them needs them: the adapters are the model's own, new ones."""
    own = model.state_dict()
    found = {}
    for name, value in own.items():
        plain = name.replace(BASE, ".")
        found[name] = (
            value if ADAPTER in name and name not in state else state.get(name, state.get(plain, value))
        )
    unknown = {
        n: v for n, v in state.items() if n not in own and n not in {o.replace(BASE, ".") for o in own}
    }
    return {**found, **unknown}


def merged(model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a model with its adapters added to the matrices that they change, under the plain names."""
    deltas = {
        f"{name}.weight": module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    found = {}
    for name, value in model.state_dict().items():
        if ADAPTER not in name:
            plain = name.replace(BASE, ".")
            found[plain] = value + deltas[plain] if plain in deltas else value
    return found
