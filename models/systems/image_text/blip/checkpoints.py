"""Weights from and for others: original BLIP files, transformers folders, ViT and BERT to start from.

Every name in a file is either used or ignored for a reason given here; anything else is an error that lists
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlpipe.models.blocks.post_norm import NORM_EPS
from vlpipe.models.layouts.image_text import blip as layouts
from vlpipe.models.layouts.table import to_ours, to_theirs
from vlpipe.models.systems.image_text.blip.config import BlipConfig, unknown_and_mask
from vlpipe.models.systems.image_text.blip.vision import INIT_STD, resize_positions
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.models.weights.hub import local_folder
from vlpipe.models.weights.published import read_state

# momentum copies and queues belong to a training in progress; position_ids are 0, 1, 2, ...
ORIGINAL_IGNORED = (
    r"^(visual_encoder|text_encoder|vision_proj|text_proj)_m\.|^(image|text|idx)_queue$|^(queue_ptr|ptr_queue)$"
    r"|\.position_ids$"
)
VIT_IGNORED = r"^(head|pre_logits)\."  # the classifier
BERT_IGNORED = r"^bert\.pooler\.|^cls\.seq_relationship\.|\.token_type_embeddings\.|\.position_ids$"
EXPORT_README = """\
Written by vlpipe; opens in transformers as `{cls}`.
{note}"""
CAPTIONER_NOTE = """\
`generate` of transformers may also choose [PAD], [CLS], [DEC], [ENC], [UNK] and [MASK], which are no words;
to exclude them as vlpipe does, pass `suppress_tokens={never}`.
"""
RETRIEVAL_NOTE = """\
The matching head reads [ENC] (id {enc}) at position 0, the similarity reads [CLS]. The processor writes
[CLS]: before `use_itm_head=True` set `input_ids[:, 0] = {enc}`, else the head judges a token it never saw.
"""

Read = tuple[BlipConfig, dict[str, Tensor]]  # what `Blip.from_tensors` takes


def read_original(path: str | Path, changes: Mapping[str, Any]) -> Read:
    """Reads a Salesforce BLIP .pth: pretraining, captioner or retrieval; what it holds decides `parts`.

    Sizes are read off the shapes; heads are 64 wide as in ViT and BERT, ids are those of bert-base-uncased
    with [DEC] and [ENC] behind. `changes` (BlipConfig fields) replace them; another image_size interpolates
    the positions.
    """
    theirs = read_tensors(path)
    has = {part: any(n.startswith(f"text_{part}.") for n in theirs) for part in ("encoder", "decoder")}
    if not any(has.values()) or "visual_encoder.pos_embed" not in theirs:
        raise ValueError(
            f"{path} is not a checkpoint of the original BLIP code: wanted the tensors visual_encoder.* and text_*.*, got "
            f"{sorted(theirs)[:3]}"
        )
    parts = "all" if all(has.values()) else "retrieval" if has["encoder"] else "captioner"
    num_vision = _num_layers(theirs, "visual_encoder.blocks.")
    bert = "text_decoder.bert." if has["decoder"] else "text_encoder."
    num_text = _num_layers(theirs, f"{bert}encoder.layer.")
    ours = to_ours(layouts.original(num_vision, num_text, parts), theirs, ORIGINAL_IGNORED)
    patch = theirs["visual_encoder.patch_embed.proj.weight"].shape[-1]
    return _read(_config(ours, patch, num_vision, num_text, parts), ours, changes)


def read_transformers(folder: Path, changes: Mapping[str, Any]) -> Read:
    """Reads a `save_pretrained` folder of BlipForConditionalGeneration or BlipForImageTextRetrieval; gives that
    part of a Blip.
    """
    from transformers import BlipConfig as TheirConfig

    config = TheirConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "blip":
        raise ValueError(
            f"checkpoint: model_type must be blip, but is {config.model_type} in {folder}/config.json"
        )
    image, text = config.vision_config, config.text_config
    theirs = read_tensors(folder)
    parts = "captioner" if any(n.startswith("text_decoder.") for n in theirs) else "retrieval"
    table = layouts.transformers(image.num_hidden_layers, text.num_hidden_layers, parts)
    ours = to_ours(table, theirs, r"\.position_ids$")
    read = _config(ours, image.patch_size, image.num_hidden_layers, text.num_hidden_layers, parts)
    read.update(
        vision_heads=image.num_attention_heads,
        text_heads=text.num_attention_heads,
        vision_norm_eps=image.layer_norm_eps,
        dropout=text.hidden_dropout_prob,
        label_smoothing=text.label_smoothing,
        pad=text.pad_token_id,
        sep=text.sep_token_id,
        dec=text.bos_token_id,
        **{
            name: ids
            for name in ("cls", "enc", "unk", "mask")
            if (ids := getattr(text, f"{name}_token_id", None)) is not None
        },
    )
    read.update(unknown_and_mask(folder, read))
    return _read(read, ours, changes)


def init_vit(blip: Any, path: str | Path) -> None:
    """Start the vision tower from a ViT in timm's layout (BLIP: DeiT-B/16, ViT-L/16 of ImageNet-21k)."""
    if blip.config.vision is not None:
        raise ValueError(
            f"init_vit needs a model with a ViT, but this one has vision: {blip.config.vision['use']}"
        )
    theirs = read_tensors(path)
    entries = list(layouts.vision("", layouts.TIMM, blip.config.vision_layers))
    ours = to_ours(entries, theirs, VIT_IGNORED)
    if blip.config.position != "learned":
        raise ValueError(
            "init_vit needs a model with position: learned, because a ViT has learned position embeddings"
        )
    ours["vision.positions"] = resize_positions(ours["vision.positions"], blip.vision.positions.shape[1])
    _copy(blip, ours)


def init_bert(blip: Any, path: str | Path, tokenizer: Tokenizer) -> None:
    """Start the text side from a BERT (bert-base-uncased): both self-attentions alike, cross-attention stays
    random.

    Its vocabulary must be that of `tokenizer`, less the [DEC] and [ENC] we append; of its positions the first are taken.
    Raises ValueError if a token differs, or if the weights have no `vocab.txt` or `tokenizer.json` beside them.
    """
    theirs = {_modern(name): value for name, value in read_tensors(path).items()}
    entries = [
        *layouts.text("bert.", blip.config.text_layers, "encoder", cross=False),
        *layouts.text("bert.", blip.config.text_layers, "decoder", cross=False),
        *layouts.lm_head("cls.predictions."),
    ]
    ours = to_ours(entries, theirs, BERT_IGNORED)
    num, vocab_size = len(ours["lm_head.bias"]), blip.config.vocab_size
    if num not in (vocab_size, vocab_size - 2):
        raise ValueError(
            f"init_bert: the BERT must have {vocab_size} tokens, or {vocab_size - 2} (without [DEC] and [ENC]), got {num}"
        )
    _same_vocabulary(path, tokenizer, num)
    for name in ("text.words.weight", "lm_head.bias"):
        fresh = blip.state_dict().get(name)
        if fresh is not None:
            ours[name] = torch.cat([ours[name], fresh[num:].to(ours[name])])
    ours["text.positions.weight"] = ours["text.positions.weight"][: blip.config.max_text_length]
    _copy(blip, ours)


def _same_vocabulary(path: str | Path, tokenizer: Tokenizer, num: int) -> None:
    """Raises ValueError if the first `num` tokens beside the weights in `path` are not those of `tokenizer`."""
    theirs = Tokenizer.load(Path(path).parent if Path(path).is_file() else path).tokens
    differ = [
        i for i, pair in enumerate(zip(theirs[:num], tokenizer.tokens[:num], strict=True)) if len({*pair}) > 1
    ]
    if differ:
        i = differ[0]
        raise ValueError(
            f"init_bert: the vocabulary in {path} is another than the tokenizer's: {len(differ)} of {num} tokens differ, "
            f"first number {i}: {theirs[i]!r} there, {tokenizer.tokens[i]!r} here; set `tokenizer` to that of the BERT"
        )


def export_captioner(blip: Any, tokenizer: Tokenizer, folder: str | Path) -> None:
    """A folder for `BlipForConditionalGeneration.from_pretrained` and `BlipProcessor.from_pretrained`: equal
    logits.
    """
    from transformers import BlipForConditionalGeneration

    c = blip.config
    note = CAPTIONER_NOTE.format(never=c.never)
    _export(blip, tokenizer, Path(folder), "captioner", BlipForConditionalGeneration, note)


def export_retrieval(blip: Any, tokenizer: Tokenizer, folder: str | Path) -> None:
    """A folder for `BlipForImageTextRetrieval.from_pretrained`: equal similarities, and with [ENC] equal
    matching logits.
    """
    from transformers import BlipForImageTextRetrieval

    note = RETRIEVAL_NOTE.format(enc=blip.config.enc)
    _export(blip, tokenizer, Path(folder), "retrieval", BlipForImageTextRetrieval, note)


def read_tensors(source: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or .pth/.bin file, or from a folder or hub id that has one."""
    path = Path(source)
    if not path.is_file():
        names = ("model.safetensors", "pytorch_model.bin")
        folder = local_folder(source, names)
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise ValueError(f"checkpoint: there is no {' or '.join(names)} in {folder}")
        path = found[0]
    return read_state(path)


def _export(blip: Any, tokenizer: Tokenizer, folder: Path, parts: str, cls: Any, note: str) -> None:
    if blip.config.parts not in ("all", parts):
        raise ValueError(
            f"export needs a model with parts 'all' or {parts!r}, but this one has parts {blip.config.parts!r}"
        )
    from transformers import BertTokenizer, BlipProcessor
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    c = blip.config
    state = {**blip.state_dict(), "vision.positions": blip.vision.positions}
    table = layouts.transformers(c.vision_layers, c.text_layers, parts)
    model = cls(_their_config(c))
    model.load_state_dict(to_theirs(table, state, c.patch_size))
    model.save_pretrained(folder)
    tokenizer.save(folder)
    size = {"height": c.image_size, "width": c.image_size}
    bert = BertTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=c.max_text_length)
    BlipProcessor(BlipImageProcessorPil(size=size), bert).save_pretrained(folder)
    (folder / "README.md").write_text(EXPORT_README.format(cls=cls.__name__, note=note), encoding="utf-8")


def _their_config(c: BlipConfig) -> Any:
    """transformers' defaults differ from BLIP's nearly everywhere, so nothing is left to them."""
    from transformers import BlipConfig as TheirConfig

    text = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.text_width,
        "intermediate_size": 4 * c.text_width,
        "num_hidden_layers": c.text_layers,
        "num_attention_heads": c.text_heads,
        "max_position_embeddings": c.max_text_length,
        "layer_norm_eps": NORM_EPS,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
        "label_smoothing": c.label_smoothing,
        "pad_token_id": c.pad,
        "bos_token_id": c.dec,
        "eos_token_id": c.sep,
        "sep_token_id": c.sep,
        "cls_token_id": c.cls,
        "enc_token_id": c.enc,
        "unk_token_id": c.unk,
        "mask_token_id": c.mask,
    }
    image = {
        "hidden_size": c.vision_width,
        "intermediate_size": 4 * c.vision_width,
        "num_hidden_layers": c.vision_layers,
        "num_attention_heads": c.vision_heads,
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "layer_norm_eps": c.vision_norm_eps,
        "initializer_range": INIT_STD,
    }
    return TheirConfig(
        text_config=text,
        vision_config=image,
        image_text_hidden_size=c.embed_dim,
        label_smoothing=c.label_smoothing,
    )


def _config(
    ours: Mapping[str, Tensor], patch_size: int, num_vision: int, num_text: int, parts: str
) -> dict[str, Any]:
    """Fields of BlipConfig as far as the weights tell them."""
    num_positions, vision_width = ours["vision.positions"].shape[1:]
    vocab_size, text_width = ours["text.words.weight"].shape
    return {
        "parts": parts,
        "image_size": patch_size * round((num_positions - 1) ** 0.5),
        "patch_size": patch_size,
        "vision_width": vision_width,
        "vision_layers": num_vision,
        "vision_heads": max(1, vision_width // 64),
        "text_width": text_width,
        "text_layers": num_text,
        "text_heads": max(1, text_width // 64),
        "vocab_size": vocab_size,
        "max_text_length": len(ours["text.positions.weight"]),
        "embed_dim": len(ours["vision_proj.bias"]) if "vision_proj.bias" in ours else 256,
        "pad": 0,
        "cls": 101,
        "sep": 102,
        "dec": vocab_size - 2,
        "enc": vocab_size - 1,
    }


def _read(read: Mapping[str, Any], ours: Mapping[str, Tensor], changes: Mapping[str, Any]) -> Read:
    fields = {**read, **changes}
    if (fields["cls"], fields["sep"]) == (101, 102):  # bert-base-uncased's
        fields = {"unk": 100, "mask": 103, **fields}
    return BlipConfig(**fields), {"temp": torch.tensor(0.07), **ours}  # captioners store no temperature


def _copy(blip: Any, tensors: Mapping[str, Tensor]) -> None:
    """Replace these weights; those of parts the model does not have are left out."""
    state = blip.state_dict()
    for name, value in tensors.items():
        if name in state:
            if state[name].shape != value.shape:
                raise ValueError(
                    f"init: {name} has shape {tuple(value.shape)}, but {tuple(state[name].shape)} in the model"
                )
            state[name].copy_(value)


def _num_layers(tensors: Mapping[str, Tensor], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})


def _modern(name: str) -> str:
    """bert-base-uncased is older than the names weight and bias for a LayerNorm."""
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
