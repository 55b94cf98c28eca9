"""Language models in transformers: the same modules, so the same names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vlpipe.models.layouts.table import Entry
from vlpipe.models.weights.published import fill

NET = "llm.net."  # where a system has the language model


def entries(net: nn.Module, rename: Mapping[str, str]) -> Iterator[Entry]:
    """The table of a language model inside of another model of transformers.

    rename: what its names start with -> what they start with there; the longest counts.
    """
    for name in net.state_dict():
        start = max((old for old in rename if name.startswith(old)), key=len)
        yield Entry(NET + name, (rename[start] + name.removeprefix(start),))


def config_of(config: Any) -> dict[str, Any]:
    """Returns what `llm` of a system is, of a config of transformers; fields that differ from its defaults."""
    found: dict[str, Any] = config.to_diff_dict()
    for name in ("transformers_version", "architectures", "dtype", "_name_or_path"):
        found.pop(name, None)
    return {**found, "model_type": config.model_type}


def tokens_of(config: Any) -> dict[str, int]:
    """Returns `vocab_size`, `start` and `end` of a config of transformers. T5 starts with its padding token."""
    name = "decoder_start_token_id" if config.is_encoder_decoder else "bos_token_id"
    first, end = getattr(config, name, None), config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    return {
        "vocab_size": config.vocab_size,
        "start": config.pad_token_id if first is None else first,
        "end": end,
    }


def image_token(c: Any, known: int) -> int:
    """Returns the id that stands for an image in a config of transformers; `known`: how many the language model has.

    Raises ValueError if the tokenizer has a token for each of them and the config names none.
    """
    if c.image_token is not None:
        return int(c.image_token)
    if c.vocab_size >= known:
        raise ValueError(
            "export: transformers needs a token that stands for a part of the image, and the tokenizer has one for each of "
            f"the {known} of the language model; set image_token to one that no text contains"
        )
    return int(c.vocab_size)


class LlmLayout:
    """As `Layout`, of a model that is one of transformers with more around it."""

    def load(self, cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
        """Returns our model of a folder. Raises ValueError for weights that are missing."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        auto = (
            transformers.AutoModelForSeq2SeqLM
            if config.is_encoder_decoder
            else transformers.AutoModelForCausalLM
        )
        theirs, told = auto.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        if told["missing_keys"] or told["mismatched_keys"]:
            raise ValueError(f"checkpoint: {folder} lacks {sorted(told['missing_keys'])[:8]}, or has others")
        model = cls(**{"llm": config_of(config), **tokens_of(config), **changes})
        state: dict[str, Tensor] = {NET + name: value for name, value in theirs.state_dict().items()}
        fill(model, state, cls.__name__)
        return model

    def check(self, model: Any, kind: str | None) -> str:
        if kind is not None:
            raise ValueError(f"export: {type(model).__name__} has no kind {kind!r}")
        return ""

    def export(self, model: Any, folder: Path, kind: str | None) -> None:
        self.check(model, kind)
        model.llm.net.save_pretrained(folder)


LAYOUT = LlmLayout()
