"""BLIP: a ViT and one text transformer used as unimodal encoder, image-grounded encoder and image-grounded
decoder.

Built on our own blocks, not on transformers' BLIP: those have the encoder and the decoder as two modules
that must be re-pointed to each other, materialise attention weights instead of using fused attention, and
start the vision tower at std 1e-10. `checkpoints` reads and writes their layout with equal outputs. Li et
al. 2022, https://arxiv.org/abs/2201.12086.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlpipe.models.blocks.post_norm import INIT_STD, init_bert
from vlpipe.models.hub import local_folder
from vlpipe.models.interface.capabilities import EmbedsImages, EmbedsTexts, Generates, Matches, TextRules
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.published import read_state
from vlpipe.models.text import Cache, LmHead, TextTransformer
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.models.vision import Vit, resize_positions

FORMAT = "vlpipe.models.blip"
TOKENS = ("pad", "cls", "sep", "dec", "enc", "unk", "mask")  # fields of BlipConfig that a Tokenizer has too
PARTS = {  # parts -> (text encoder, text decoder, cross-attention)
    "all": (True, True, True),
    "captioner": (False, True, True),
    "retrieval": (True, False, True),
    "unimodal": (True, False, False),
}


@dataclass(frozen=True, kw_only=True)
class BlipConfig:
    """Sizes and token ids. Defaults of the sizes are BLIP ViT-B/16's; `parts` says which of the three
    functionalities exist.
    """

    vocab_size: int
    pad: int
    cls: int
    sep: int
    dec: int
    enc: int
    unk: int | None = None  # None: not known, as in folders of older versions without a tokenizer
    mask: int | None = None
    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    text_width: int = 768
    text_layers: int = 12
    text_heads: int = 12
    max_text_length: int = 512
    embed_dim: int = 256
    dropout: float = 0.1  # text only, attention weights included
    drop_path: float = 0.0  # vision; BLIP: 0 for ViT-B, 0.1 for ViT-L
    position: str = "learned"  # of patches: learned | sincos
    label_smoothing: float = 0.1  # of LM
    vision_norm_eps: float = 1e-6
    init_std: float = 0.02  # of weight matrices; a model 100 wide wants 0.08 (at 0.02 it hardly learns)
    parts: str = "all"  # all | captioner | retrieval | unimodal

    def __post_init__(self) -> None:
        for what, one_of in (("position", ("learned", "sincos")), ("parts", tuple(PARTS))):
            if getattr(self, what) not in one_of:
                raise ValueError(f"{what}: wanted one of {', '.join(one_of)}, got {getattr(self, what)!r}")
        for what, by in (
            ("vision_width", "vision_heads"),
            ("text_width", "text_heads"),
            ("image_size", "patch_size"),
        ):
            if getattr(self, by) < 1 or getattr(self, what) % getattr(self, by):
                raise ValueError(
                    f"{what}: wanted a multiple of {by} {getattr(self, by)}, got {getattr(self, what)}"
                )

    @property
    def never(self) -> list[int]:
        """Ids of the tokens that are never generated: padding, [CLS], [DEC], [ENC], [UNK] and [MASK].

        [UNK] is a target in training where a text has a character that the vocabulary lacks, but it is no word.
        """
        ids = (self.pad, self.cls, self.dec, self.enc, self.unk, self.mask)
        return sorted({i for i in ids if i is not None})


class Blip(Model):
    """See the module. Text is right-padded ids and masks (B, L) from `Tokenizer.encode`; pixels are
    CLIP-normalised.
    """

    STREAMS = {"image": "image:Image", "text": "text:Text"}  # noqa: RUF012
    ENCODINGS = {"image": ("image_tokens",), "text": ("text_feat",)}  # noqa: RUF012
    FORMATS = (FORMAT, "blip")
    config: BlipConfig

    def __init__(self, config: BlipConfig) -> None:
        super().__init__()
        self.config = c = config
        encoder, decoder, cross = PARTS[c.parts]
        self.vision = Vit(
            image_size=c.image_size,
            patch_size=c.patch_size,
            width=c.vision_width,
            num_layers=c.vision_layers,
            num_heads=c.vision_heads,
            drop_path=c.drop_path,
            position=c.position,
            norm_eps=c.vision_norm_eps,
        )
        self.text = TextTransformer(
            vocab_size=c.vocab_size,
            max_length=c.max_text_length,
            width=c.text_width,
            num_layers=c.text_layers,
            num_heads=c.text_heads,
            image_width=c.vision_width,
            dropout=c.dropout,
            encoder=encoder,
            decoder=decoder,
            cross=cross,
        )
        self.vision_proj = _linear(c.vision_width, c.embed_dim) if encoder else None
        self.text_proj = _linear(c.text_width, c.embed_dim) if encoder else None
        self.itm_head = _linear(c.text_width, 2) if encoder and cross else None
        self.lm_head = LmHead(c.text_width, c.vocab_size) if decoder else None
        self.temp = nn.Parameter(torch.tensor(0.07))
        self._scale_init(c.init_std / INIT_STD)

    @torch.no_grad()
    def _scale_init(self, factor: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.mul_(factor)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], tokenizer: Any = None) -> Blip:
        """From the fields of `BlipConfig` that are not the tokenizer's; ValueError for a key it does not
        have.
        """
        given = {name: getattr(tokenizer, name) for name in ("vocab_size", *TOKENS)}
        known = [f.name for f in dataclasses.fields(BlipConfig) if f.name not in given]
        for key in spec:
            if key not in known:
                near = get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ValueError(f"model: Blip has no parameter {key!r}; {hint}")
        return cls(BlipConfig(**given, **spec))

    def streams(self) -> dict[str, dict[str, Any]]:
        specs = super().streams()
        specs["text"]["max_length"] = min(30, self.config.max_text_length)  # BLIP's pretraining
        return specs

    @property
    def embed_dim(self) -> int:
        """Width of the space that images and texts share."""
        return self.config.embed_dim

    def image_tokens(self, out: Outputs) -> Tensor:
        """(B, N, Dv)."""
        return self.encode_image(out.stream("image").data)

    def image_feat(self, out: Outputs) -> Tensor:
        """(B, E), unit norm."""
        if self.config.parts == "unimodal":  # a teacher: nobody asks for its image tokens
            return self.embed_image(out.stream("image").data)
        return self.image_features(out.image_tokens)

    def text_feat(self, out: Outputs) -> Tensor:
        """(B, E), unit norm."""
        text = out.stream("text")
        assert text.mask is not None
        return self.embed_text(text.data, text.mask)

    def match(self, out: Outputs) -> Tensor:
        """(B, 2) logits of [no match, match]."""
        tokens, rows = out.unpaired("image_tokens", "image")
        text = out.stream("text")
        assert text.mask is not None
        return self.match_logits(text.data, text.mask, tokens, rows)

    def decoder_hidden(self, out: Outputs) -> Tensor:
        """(B, L, Dt): position t predicts the token at t + 1."""
        return self.decode_text(out.stream("text").data, out.image_tokens)

    def teacher_copy(self) -> Blip:
        return self.unimodal_copy()

    @torch.no_grad()
    def constrain(self) -> None:
        self.temp.clamp_(0.001, 0.5)

    def lacks(self, capability: type) -> bool:
        encoder, decoder, cross = PARTS[self.config.parts]
        has: dict[type, bool] = {
            Matches: encoder and cross,
            Generates: decoder,
            EmbedsImages: encoder,
            EmbedsTexts: encoder,
        }
        return not has.get(capability, True)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, Dv)."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels: wanted (B, 3, {size}, {size}), got {tuple(pixels.shape)}")
        out: Tensor = self.vision(pixels)
        return out

    def image_features(self, tokens: Tensor) -> Tensor:
        """(B, N, Dv) -> (B, E), unit norm."""
        return F.normalize(self._has("vision_proj")(tokens[:, 0]).float(), dim=-1)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) -> (B, L, Dt), without image."""
        self._has("text_proj")
        return self.text.encode(ids, mask)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(B, L, Dt) -> (B, E), unit norm."""
        return F.normalize(self._has("text_proj")(tokens[:, 0]).float(), dim=-1)

    def embed_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, E): `image_features(encode_image(pixels))` for less work."""
        return self.image_features(self.vision(pixels, first=True))

    def embed_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) -> (B, E): `text_features(encode_text(ids, mask))` for less work."""
        self._has("text_proj")
        return self.text_features(self.text.encode(ids, mask, first=True))

    def match_logits(
        self, ids: Tensor, mask: Tensor, image_tokens: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """(B, 2): [no match, match]. Position 0 becomes [ENC] here. With `rows` (B,), text i is matched
        with image rows[i].
        """
        head = self._has("itm_head")
        hidden = self.text.match(_with_first(ids, self.config.enc), mask, image_tokens, rows)
        out: Tensor = head(hidden[:, 0])
        return out

    def decode_text(self, ids: Tensor, image_tokens: Tensor) -> Tensor:
        """Hidden states (B, L, Dt) of the decoder; position 0 becomes [DEC] here."""
        self._has("lm_head")
        return self.text.decode(_with_first(ids, self.config.dec), image_tokens)

    def predict(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., Dt) of the decoder -> logits (..., V) of the next token."""
        out: Tensor = self._has("lm_head")(hidden, self.text.words.weight)
        return out

    def lm_logits(self, ids: Tensor, mask: Tensor, image_tokens: Tensor) -> Tensor:
        """(B, L, V): at position t, of the token at t + 1. Where `mask` is 0 they mean nothing."""
        if bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise ValueError("lm_logits: wanted right-padded text")
        return self.predict(self.decode_text(ids, image_tokens))

    @property
    def text_rules(self) -> TextRules:
        """Which tokens captions start and end with, and which are never generated."""
        c = self.config
        return TextRules(c.dec, c.sep, c.never, c.max_text_length)

    def start_text(self, images: Tensor, room: int, repeats: int = 1) -> Cache:
        """A cache for captions of image tokens (B, N, Dv), each `repeats` times."""
        self._has("lm_head")
        return self.text.start(images, room, repeats)

    def step_text(self, ids: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, T, Dt) of the next ids (B, T)."""
        return self.text.step(ids, cache)

    def unimodal_copy(self) -> Blip:
        """A copy of what ITC's momentum encoders need, without gradients."""
        copy = Blip(dataclasses.replace(self.config, parts="unimodal")).to(self.temp.device)
        wanted = copy.state_dict()
        copy.load_state_dict({name: value for name, value in self.state_dict().items() if name in wanted})
        return copy.requires_grad_(False)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`. The tokenizer is saved by its owner, into
        `tokenizer/`.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, **dataclasses.asdict(self.config)}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, source: str | Path, /, **changes: Any) -> Blip:
        """From our folder, a transformers BLIP folder, a hub id of either, or an original .pth file.

        `changes` replace config fields; another `image_size` interpolates learned positions. ValueError for
        weights that are missing or left over.
        """
        from vlpipe.models import checkpoints

        if Path(source).is_file():
            return checkpoints.load_original(source, changes)
        folder = local_folder(source, ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"])
        if not (folder / "config.json").is_file():
            raise ValueError(f"model: no config.json in {folder}")
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if fields.pop("format", None) != FORMAT:
            return checkpoints.load_transformers(folder, changes)
        fields = {**unknown_and_mask(folder, fields), **fields}
        return cls.from_tensors(BlipConfig(**{**fields, **changes}), read_state(folder / "model.safetensors"))

    @classmethod
    def from_tensors(cls, config: BlipConfig, tensors: Mapping[str, Tensor]) -> Blip:
        """A model of exactly these weights (our names)."""
        model = cls(config)
        weights = dict(tensors)
        if "vision.positions" in weights and config.position == "learned":
            num_tokens = model.vision.positions.shape[1]
            weights["vision.positions"] = resize_positions(weights["vision.positions"], num_tokens)
        problem = _mismatch(model.state_dict(), weights)
        if problem:
            raise ValueError(f"weights do not fit the model: {problem}")
        model.load_state_dict(weights)
        return model

    def _has(self, head: str) -> nn.Module:
        module: nn.Module | None = getattr(self, head)
        if module is None:
            raise ValueError(
                f"model: this needs {head}, which a Blip with parts={self.config.parts!r} does not have"
            )
        return module


def unknown_and_mask(folder: Path, fields: Mapping[str, Any]) -> dict[str, int]:
    """Ids `unk` and `mask` for a config that lacks them: those of the tokenizer in the folder, if it has one."""
    if fields.get("unk") is not None and fields.get("mask") is not None:
        return {}
    try:
        tokenizer = Tokenizer.load(folder)
    except ValueError:  # no tokenizer, or not one that this model could be used with
        return {}
    return (
        {"unk": tokenizer.unk, "mask": tokenizer.mask} if tokenizer.vocab_size == fields["vocab_size"] else {}
    )


def _mismatch(wanted: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> str:
    missing = sorted(wanted.keys() - got.keys())
    unknown = sorted(got.keys() - wanted.keys())
    other = [
        f"{name} {tuple(got[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & got.keys())
        if wanted[name].shape != got[name].shape
    ]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", other))
    return "; ".join(f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds if names)


def _with_first(ids: Tensor, token: int) -> Tensor:
    ids = ids.clone()
    ids[:, 0] = token
    return ids


def _linear(num_in: int, num_out: int) -> nn.Linear:
    layer = nn.Linear(num_in, num_out)
    init_bert(layer)
    return layer
