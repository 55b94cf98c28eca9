"""UniVL's published weights, by the names and shapes of its file, against a second implementation of its modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs

W, D, V, HEADS = 128, 6, 20, 2  # width, features, words; heads of 64
L, T = 12, 8  # positions of words and of windows
PADDED = 6  # words of each text, with padding
State = dict[str, Tensor]


def linear(name: str, out: int, inp: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, inp), f"{name}.bias": (out,)}


def norm(name: str, width: int = W) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def layer(at: str) -> dict[str, tuple[int, ...]]:
    found = {}
    for name in ("query", "key", "value"):
        found |= linear(f"{at}.attention.self.{name}", W, W)
    found |= linear(f"{at}.attention.output.dense", W, W) | norm(f"{at}.attention.output.LayerNorm")
    return (
        found
        | linear(f"{at}.intermediate.dense", 4 * W, W)
        | linear(f"{at}.output.dense", W, 4 * W)
        | norm(f"{at}.output.LayerNorm")
    )


def head(at: str) -> dict[str, tuple[int, ...]]:
    return linear(f"{at}.predictions.transform.dense", W, W) | norm(f"{at}.predictions.transform.LayerNorm")


def table() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the modules of its text, video and cross encoder, decoder and heads."""
    found: dict[str, tuple[int, ...]] = {"similarity_dense.weight": (1, W), "similarity_dense.bias": (1,)}
    for at, tables in (
        ("bert", {"word": V, "position": L, "token_type": 2}),
        ("visual", {"position": T}),
        ("cross", {"position": L + T, "token_type": 2}),
        ("decoder", {"word": V, "position": L}),
    ):
        found |= {f"{at}.embeddings.{name}_embeddings.weight": (num, W) for name, num in tables.items()}
        found |= norm(f"{at}.embeddings.LayerNorm")
        if at != "decoder":
            found |= layer(f"{at}.encoder.layer.0") | linear(f"{at}.pooler.dense", W, W)
    found |= linear("visual.embeddings.word_embeddings", W, D) | norm("normalize_video.visual_norm2d", D)
    at = "decoder.decoder.layer.0"
    for kind in ("slf_attn", "enc_attn"):
        for name in ("query", "key", "value"):
            found |= linear(f"{at}.{kind}.att.{name}", W, W)
        found |= linear(f"{at}.{kind}.output.dense", W, W) | norm(f"{at}.{kind}.output.LayerNorm")
    found |= linear(f"{at}.intermediate.dense", 4 * W, W) | linear(f"{at}.output.dense", W, 4 * W)
    found |= norm(f"{at}.output.LayerNorm")
    for name in ("cls", "decoder.classifier.cls"):
        found |= head(name) | {f"{name}.predictions.bias": (V,), f"{name}.predictions.decoder.weight": (V, W)}
    return (
        found
        | head("cls_visual")
        | {"cls_visual.predictions.bias": (D,), "cls_visual.predictions.weight": (W, D)}
    )


def published() -> State:
    draw = torch.Generator().manual_seed(0)
    state = {
        name: torch.randn(shape, generator=draw) / max(1, shape[-1]) ** 0.5 for name, shape in table().items()
    }
    words, places = (state[f"bert.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    for name in ("cls.predictions.decoder", "decoder.classifier.cls.predictions.decoder"):
        state[f"{name}.weight"] = words
    state["decoder.embeddings.word_embeddings.weight"] = words
    state["decoder.embeddings.position_embeddings.weight"] = places
    state["cls_visual.predictions.weight"] = state["visual.embeddings.word_embeddings.weight"]
    return state


class Theirs:
    """Their modules, of one text and one clip without padding."""

    def __init__(self, state: State) -> None:
        self.state = state

    def lin(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-12)

    def attend(self, x: Tensor, context: Tensor, at: str, causal: bool = False) -> Tensor:
        q, k, v = (
            self.lin(y, f"{at}.{name}").unflatten(-1, (HEADS, -1)).transpose(0, 1)
            for y, name in ((x, "query"), (context, "key"), (context, "value"))
        )
        scores = q @ k.transpose(1, 2) / (W / HEADS) ** 0.5
        if causal:
            scores = scores + torch.full(scores.shape[1:], -10000.0).triu(1)
        return (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)

    def mlp(self, x: Tensor, at: str) -> Tensor:
        inner = self.lin(F.gelu(self.lin(x, f"{at}.intermediate.dense")), f"{at}.output.dense")
        return self.norm(x + inner, f"{at}.output.LayerNorm")

    def encode(self, x: Tensor, at: str, places: Tensor | None = None) -> Tensor:
        table = self.state[f"{at}.embeddings.position_embeddings.weight"]
        x = self.norm(
            x + table[torch.arange(len(x)) if places is None else places], f"{at}.embeddings.LayerNorm"
        )
        block = f"{at}.encoder.layer.0"
        mixed = self.lin(self.attend(x, x, f"{block}.attention.self"), f"{block}.attention.output.dense")
        return self.mlp(self.norm(x + mixed, f"{block}.attention.output.LayerNorm"), block)

    def frames(self, feats: Tensor) -> Tensor:
        return self.norm(feats, "normalize_video.visual_norm2d")

    def text(self, ids: Tensor) -> Tensor:
        types = self.state["bert.embeddings.token_type_embeddings.weight"][0]
        return self.encode(self.state["bert.embeddings.word_embeddings.weight"][ids] + types, "bert")

    def video(self, feats: Tensor) -> Tensor:
        return self.encode(self.lin(self.frames(feats), "visual.embeddings.word_embeddings"), "visual")

    def cross(self, ids: Tensor, feats: Tensor) -> Tensor:
        """Frames come after a text that is padded to PADDED words."""
        types = self.state["cross.embeddings.token_type_embeddings.weight"]
        places = torch.cat([torch.arange(len(ids)), PADDED + torch.arange(len(feats))])
        x = torch.cat([self.text(ids) + types[0], self.video(feats) + types[1]])
        return self.encode(x, "cross", places)

    def score(self, ids: Tensor, feats: Tensor) -> Tensor:
        pooled = torch.tanh(self.lin(self.cross(ids, feats)[0], "cross.pooler.dense"))
        return self.lin(pooled, "similarity_dense")[0]

    def transform(self, x: Tensor, at: str) -> Tensor:
        dense = F.gelu(self.lin(x, f"{at}.predictions.transform.dense"))
        return self.norm(dense, f"{at}.predictions.transform.LayerNorm")

    def predicted_frames(self, ids: Tensor, feats: Tensor) -> Tensor:
        x = self.transform(self.cross(ids, feats)[len(ids) :], "cls_visual")
        return x @ self.state["cls_visual.predictions.weight"] + self.state["cls_visual.predictions.bias"]

    def words(self, x: Tensor, at: str) -> Tensor:
        weight, bias = (self.state[f"{at}.predictions.{name}"] for name in ("decoder.weight", "bias"))
        return self.transform(x, at) @ weight.t() + bias

    def written(self, ids: Tensor, feats: Tensor) -> Tensor:
        at, block = "decoder.embeddings", "decoder.decoder.layer.0"
        x = self.state[f"{at}.word_embeddings.weight"][ids]
        x = self.norm(x + self.state[f"{at}.position_embeddings.weight"][: len(x)], f"{at}.LayerNorm")
        context = self.cross(ids, feats)
        for kind, seen in (("slf_attn", None), ("enc_attn", context)):
            mixed = self.attend(x, x if seen is None else seen, f"{block}.{kind}.att", causal=seen is None)
            x = self.norm(
                x + self.lin(mixed, f"{block}.{kind}.output.dense"), f"{block}.{kind}.output.LayerNorm"
            )
        return self.words(self.mlp(x, block), "decoder.classifier.cls")


IDS = torch.tensor([[3, 7, 11, 4], [3, 9, 4, 0]])
READ = torch.tensor([[True] * 4, [True, True, True, False]])
FEATS = torch.randn(2, 1, 5, D, generator=torch.Generator().manual_seed(1))
SEEN = torch.tensor([[[True] * 5], [[True] * 3 + [False] * 2]])


def streams() -> Batch:
    return Batch({"text": Stream(IDS, READ), "video": Stream(FEATS, SEEN)}, torch.arange(2))


@torch.no_grad()
@pytest.mark.parametrize("old_names", [False, True])
def test_published_weights_give_the_outputs_of_their_modules(tmp_path: Path, old_names: bool) -> None:
    state = published()
    old = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v
        for n, v in state.items()
    }
    torch.save(old if old_names else state, tmp_path / "univl.pretrained.bin")
    model = folder.load(tmp_path / "univl.pretrained.bin", use="univl:UniVl", frames_at=PADDED).eval()
    sizes = {"text_layers": 1, "video_layers": 1, "cross_layers": 1, "decoder_layers": 1, "heads": HEADS}
    sizes |= {"vocab_size": V, "width": W, "feat_dim": D, "max_text_length": L, "max_frames": T}
    assert {name: getattr(model.config, name) for name in sizes} == sizes
    theirs, out = Theirs(state), Outputs(model, streams())
    said, written = model.predict_words(out.word_hidden), model.predict(out.decoder_hidden)
    for b in range(2):
        ids, feats = IDS[b][READ[b]], FEATS[b, 0][SEEN[b, 0]]
        num, shown = len(ids), len(feats)
        for own, other in (
            (out.text_tokens[b, :num], theirs.text(ids)),
            (out.video_tokens[b, :shown], theirs.video(feats)),
            (model.true_frames(FEATS)[b, :shown], theirs.frames(feats)),
            (out.pair_score[b], theirs.score(ids, feats)),
            (out.frame_prediction[b, :shown], theirs.predicted_frames(ids, feats)),
            (said[b, :num], theirs.words(theirs.cross(ids, feats)[:num], "cls")),
            (written[b, :num], theirs.written(ids, feats)),
        ):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-5)


def test_finetuned_files_lack_two_heads(tmp_path: Path) -> None:
    state = {n: v for n, v in published().items() if not n.startswith(("cls.", "cls_visual."))}
    torch.save(state, tmp_path / "caption.bin")
    model = folder.load(tmp_path / "caption.bin", use="univl:UniVl", captions=True)
    torch.testing.assert_close(
        model.decoder_head.decoder.bias, state["decoder.classifier.cls.predictions.bias"]
    )
    assert model.config.captions
    assert model.word_head.decoder.weight is model.text.embed.words.weight


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state = published()
    del state["decoder.decoder.layer.0.enc_attn.att.key.bias"]
    torch.save(state | {"more.weight": torch.zeros(1)}, tmp_path / "w.bin")
    with pytest.raises(
        ValueError, match=r"1 missing: decoder.*enc_attn\.att\.key\.bias; 1 unknown: more\.weight"
    ):
        folder.load(tmp_path / "w.bin", use="univl:UniVl")
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.bin")
    with pytest.raises(ValueError, match="is not a file of UniVl: it has no tensor"):
        folder.load(tmp_path / "a.bin", use="univl:UniVl")
    other = published() | {"cls_visual.predictions.weight": torch.zeros(W, D)}
    torch.save(other, tmp_path / "o.bin")
    with pytest.raises(
        ValueError, match=r"cls_visual\.predictions\.weight must equal the parameter it shares"
    ):
        folder.load(tmp_path / "o.bin", use="univl:UniVl")
