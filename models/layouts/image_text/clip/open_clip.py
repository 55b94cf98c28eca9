"""CLIP in open_clip: a folder that its `local-dir:` opens, of a ViT or a ResNet.

Names, config keys and defaults: https://github.com/mlfoundations/open_clip, `model.py` and `factory.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from vlpipe.models.layouts.table import Entry, linear, to_ours, to_theirs
from vlpipe.models.weights.published import fill, read_state

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
READ = (WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
BLOCK = {
    "norm1": "ln_1",
    "qkv": "attn.in_proj_",
    "out": "attn.out_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}
DEFAULTS: dict[str, Any] = {  # of the keys below, in open_clip
    "vision": {
        "layers": 12,
        "width": 768,
        "head_width": 64,
        "patch_size": 16,
        "image_size": 224,
        "mlp_ratio": 4.0,
    },
    "text": {
        "layers": 12,
        "width": 512,
        "heads": 8,
        "vocab_size": 49408,
        "context_length": 77,
        "mlp_ratio": 4.0,
    },
}
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]  # CLIP's, of the pixels
# keys of a text tower that say nothing about its network
NO_NETWORK = ("hf_tokenizer_name", "tokenizer_kwargs", "pool_type", "eos_id", "pad_id", "bos_id")


def entries(c: Any, names: list[str]) -> Iterator[Entry]:
    """The table of all weights; names: of our tensors, for those of a ResNet, which are the same but for their beginning."""
    yield Entry("logit_scale", ("logit_scale",))
    if isinstance(c.vision_layers, int):
        width, num_positions = c.vision_width, 1 + (c.image_size // c.patch_size) ** 2
        yield Entry(
            "patches.class_token", ("visual.class_embedding",), shape=(1, 1, width), their_shape=(width,)
        )
        yield Entry(
            "patches.positions",
            ("visual.positional_embedding",),
            shape=(1, num_positions, width),
            their_shape=(num_positions, width),
        )
        yield Entry("patches.patch.weight", ("visual.conv1.weight",))
        yield from linear("pre_norm", "visual.ln_pre")
        yield from _blocks("vision.blocks", "visual.transformer.resblocks", c.vision_layers)
        yield from linear("vision.norm", "visual.ln_post")
        yield Entry("image_proj.weight", ("visual.proj",), turned=True)
    else:
        yield from (Entry(n, (n.replace("resnet.", "visual.", 1),)) for n in names if n.startswith("resnet."))
    yield Entry("words.words.weight", ("token_embedding.weight",))
    yield Entry("words.positions.weight", ("positional_embedding",))
    yield from _blocks("text.blocks", "transformer.resblocks", c.text_layers)
    yield from linear("text.norm", "ln_final")
    yield Entry("text_proj.weight", ("text_projection",), turned=True)


def _blocks(ours: str, theirs: str, num_layers: int) -> Iterator[Entry]:
    for i in range(num_layers):
        for own, other in BLOCK.items():
            for kind in ("weight", "bias"):
                dot = "" if other.endswith("_") else "."
                yield Entry(f"{ours}.{i}.{own}.{kind}", (f"{theirs}.{i}.{other}{dot}{kind}",))


def write(c: Any) -> dict[str, Any]:
    """Returns open_clip's config of ours."""
    vision: dict[str, Any] = {"image_size": c.image_size, "layers": c.vision_layers, "width": c.vision_width}
    if isinstance(c.vision_layers, int):
        vision |= {"patch_size": c.patch_size, "head_width": c.vision_width // c.vision_heads}
    else:
        vision |= {"layers": list(c.vision_layers), "head_width": 32 * c.vision_width // c.vision_heads}
    text: dict[str, Any] = {
        "context_length": c.max_text_length,
        "vocab_size": c.vocab_size,
        "width": c.text_width,
        "heads": c.text_heads,
        "layers": c.text_layers,
        "hf_tokenizer_name": "tokenizer",  # any name: of a local folder, open_clip reads the tokenizer beside the config
    }
    if c.end != c.vocab_size - 1:  # by default, open_clip looks for the highest id
        text |= {"pool_type": "eos", "eos_id": c.end}
    model = {"embed_dim": c.embed_dim, "quick_gelu": c.activation == "quick_gelu"}
    prepare = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    return {"model_cfg": {**model, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": prepare}


def read(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns our parameters of open_clip's config.

    Raises ValueError for a network that is not CLIP's own, or images normalised in another way; KeyError and TypeError for
    what is no such config.
    """
    model = config.get("model_cfg", config)
    vision, text = ({**DEFAULTS[k], **model.get(f"{k}_cfg", {})} for k in ("vision", "text"))
    known = {"vision_cfg": DEFAULTS["vision"], "text_cfg": (*DEFAULTS["text"], *NO_NETWORK)}
    other = [k for k, v in model.items() if v and k not in ("embed_dim", "quick_gelu", *known)]
    for part, values in (("vision_cfg", vision), ("text_cfg", text)):
        other += [f"{part}.{k}" for k, v in values.items() if v and k not in known[part]]
    other += ["mlp_ratio"] if vision["mlp_ratio"] != 4.0 or text["mlp_ratio"] != 4.0 else []
    pool = text.get("pool_type", "argmax")
    other += [f"pool_type {pool}"] if pool not in ("argmax", "eos") else []
    prepare = config.get("preprocess_cfg", {})
    other += [k for k, v in (("mean", MEAN), ("std", STD)) if list(prepare.get(k, v)) != v]
    size = vision["image_size"]
    if isinstance(size, list | tuple):
        other += [f"image_size {size}"] if len(set(size)) > 1 else []
        vision["image_size"] = size[0]
    if other:
        raise ValueError(f"model: this open_clip model is not CLIP as published: it sets {', '.join(other)}")
    is_vit = isinstance(vision["layers"], int)
    return {
        "vocab_size": text["vocab_size"],
        "end": text["eos_id"] if pool == "eos" else text["vocab_size"] - 1,
        "image_size": vision["image_size"],
        **({"patch_size": vision["patch_size"]} if is_vit else {}),
        "vision_width": vision["width"],
        "vision_layers": vision["layers"],
        "vision_heads": vision["width"] * (1 if is_vit else 32) // vision["head_width"],
        "text_width": text["width"],
        "text_layers": text["layers"],
        "text_heads": text["heads"],
        "max_text_length": text["context_length"],
        "embed_dim": model["embed_dim"],
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
    }


def load(cls: Any, folder: Path, changes: Mapping[str, Any]) -> Any:
    """Returns our model of an open_clip folder. Raises ValueError for weights missing or left over."""
    try:
        given = read(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"model: {folder / CONFIG} is not a config of open_clip: {error!r}") from error
    model = cls(**{**given, **changes})
    file = next((folder / name for name in READ if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"model: {folder} has none of {', '.join(READ)}")
    table = list(entries(model.config, list(model.state_dict())))
    fill(
        model,
        to_ours(table, read_state(file), r"^(input_resolution|context_length|vocab_size)$"),
        cls.__name__,
    )
    return model


def export(model: Any, folder: Path) -> None:
    """Writes config and weights."""
    config, state = write(model.config), model.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    theirs = to_theirs(list(entries(model.config, list(state))), state, model.config.patch_size)
    save_file({name: value.contiguous() for name, value in theirs.items()}, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
