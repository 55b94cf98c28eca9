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
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from vlpipe.models.blocks.cache import Cache
from vlpipe.models.blocks.image_encoder import build_image_encoder
from vlpipe.models.blocks.post_norm import INIT_STD, init_bert
from vlpipe.models.interface.capabilities import (
    EmbedsImages,
    EmbedsTexts,
    Generates,
    Matches,
    PredictsNext,
    TextRules,
)
from vlpipe.models.interface.joint_capabilities import PoolsJointly
from vlpipe.models.interface.model import Model
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.image_text.blip.config import PARTS, TOKENS, BlipConfig, unknown_and_mask
from vlpipe.models.systems.image_text.blip.text import LmHead, TextTransformer
from vlpipe.models.systems.image_text.blip.vision import Vit, resize_positions
from vlpipe.models.weights.hub import local_folder
from vlpipe.models.weights.published import read_state

FORMAT = "vlpipe.models.blip"


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
        self.vision = _image_encoder(c)
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

    def pooled(self, out: Outputs) -> Tensor:
        """(B, Dt): position 0, [ENC], after the image; the matching head reads it."""
        self._has("itm_head")
        tokens, rows = out.unpaired("image_tokens", "image")
        text = out.stream("text")
        assert text.mask is not None
        return self.text.match(_with_first(text.data, self.config.enc), text.mask, tokens, rows)[:, 0]

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
            PoolsJointly: encoder and cross,
            Generates: decoder,
            PredictsNext: decoder,
            EmbedsImages: encoder,
            EmbedsTexts: encoder,
        }
        return not has.get(capability, True)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N, Dv)."""
        size = self.config.image_size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels must have shape (B, 3, {size}, {size}), got {tuple(pixels.shape)}")
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
            raise ValueError("lm_logits needs right-padded text: no 1 may follow a 0 in a row of `mask`")
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
        self._has("text_proj")
        copy = Blip(dataclasses.replace(self.config, parts="unimodal")).to(self.temp.device)
        wanted = copy.state_dict()
        copy.load_state_dict({name: value for name, value in self.state_dict().items() if name in wanted})
        return copy.requires_grad_(False)

    def save(self, folder: str | Path, state: Mapping[str, Tensor] | None = None) -> None:
        """Writes `config.json` and `model.safetensors`. The tokenizer is saved by its owner, into `tokenizer/`.

        state: see `models.folder.save`.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        config = {"format": FORMAT, **dataclasses.asdict(self.config)}
        (target / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {
            name: value.detach().cpu().contiguous() for name, value in (state or self.state_dict()).items()
        }
        save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})

    def export(self, folder: str | Path, kind: str | None = None, tokenizer: Any = None) -> None:
        """As in `Model`; kind: `captioner` or `retrieval`."""
        from vlpipe.models.systems.image_text.blip import checkpoints

        self.check_export(kind)
        if kind == "captioner":
            checkpoints.export_captioner(self, tokenizer, folder)
        else:
            checkpoints.export_retrieval(self, tokenizer, folder)

    def check_export(self, kind: str | None = None) -> None:
        """Raises ValueError for a kind that `export` does not have, and for an image encoder other than BLIP's ViT."""
        if kind not in ("captioner", "retrieval"):
            raise ValueError(f"export: Blip has the kinds captioner, retrieval, got {kind!r}")
        if self.config.vision is not None:
            raise ValueError(f"export: transformers has no BLIP with vision: {self.config.vision['use']}")

    @classmethod
    def load(cls, source: str | Path, /, **changes: Any) -> Blip:
        """From our folder, a transformers BLIP folder, a hub id of either, or an original .pth file.

        `changes` replace config fields; another `image_size` interpolates learned positions. ValueError for
        weights that are missing or left over.
        """
        from vlpipe.models.systems.image_text.blip import checkpoints

        if Path(source).is_file():
            return cls.from_tensors(*checkpoints.read_original(source, changes))
        folder = local_folder(source, ["*.json", "*.txt", "model.safetensors", "pytorch_model.bin"])
        if not (folder / "config.json").is_file():
            raise ValueError(f"model: there is no config.json in {folder}")
        fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if fields.pop("format", None) != FORMAT:
            return cls.from_tensors(*checkpoints.read_transformers(folder, changes))
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
            raise ValueError(f"the weights do not fit the model: {problem}")
        model.load_state_dict(weights)
        return model

    def _has(self, head: str) -> nn.Module:
        module: nn.Module | None = getattr(self, head)
        if module is None:
            raise ValueError(
                f"this needs the module {head}, which a model with parts {self.config.parts!r} does not have"
            )
        return module


def _image_encoder(c: BlipConfig) -> Any:
    """Pixels (B, 3, S, S) -> tokens (B, 1 + N, vision_width); `first=True`: the first of them alone."""
    if c.vision is not None:
        return build_image_encoder(
            c.vision, image_size=c.image_size, width=c.vision_width, position=c.position
        )
    return Vit(
        image_size=c.image_size,
        patch_size=c.patch_size,
        width=c.vision_width,
        num_layers=c.vision_layers,
        num_heads=c.vision_heads,
        drop_path=c.drop_path,
        position=c.position,
        norm_eps=c.vision_norm_eps,
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
