"""Published weights of HowTo100M and MIL-NCE, by the names and shapes of their files, against a second implementation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.models.narrated import narrated
from vlpipe.models import folder
from vlpipe.models.folder import copy_part
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.systems.video.gated_embeddings import GatedEmbeddings
from vlpipe.models.video.s3dg import S3dG

E, D, W = 6, 10, 8


def howto100m() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = {"text_pooling.fc.weight": torch.randn(E, W), "text_pooling.fc.bias": torch.randn(E)}
    for side, width in (("GU_text", E), ("GU_video", D)):
        state |= {f"{side}.fc.weight": torch.randn(E, width), f"{side}.fc.bias": torch.randn(E)}
        state |= {f"{side}.cg.fc.weight": torch.randn(E, E), f"{side}.cg.fc.bias": torch.randn(E)}
        norm = f"{side}.cg.batch_norm"
        state |= {f"{norm}.weight": torch.rand(E), f"{norm}.bias": torch.randn(E)}
        state |= {f"{norm}.running_mean": torch.randn(E), f"{norm}.running_var": torch.rand(E) + 0.5}
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    return state


def gated(state: dict[str, Tensor], side: str, x: Tensor) -> Tensor:
    """Their module: a layer, then GLU of [x, batch norm of a layer of x], then the norm."""
    y = F.linear(x, state[f"{side}.fc.weight"], state[f"{side}.fc.bias"])
    z = F.linear(y, state[f"{side}.cg.fc.weight"], state[f"{side}.cg.fc.bias"])
    n = f"{side}.cg.batch_norm"
    z = (z - state[f"{n}.running_mean"]) / (state[f"{n}.running_var"] + 1e-5).sqrt()
    z = z * state[f"{n}.weight"] + state[f"{n}.bias"]
    return F.normalize(F.glu(torch.cat([y, z], 1), 1))


def test_howto100ms_weights_give_the_outputs_of_their_modules(tmp_path: Path) -> None:
    state = howto100m()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "w.pth")
    source = folder.load(tmp_path / "w.pth", use="gated_embeddings:GatedEmbeddings")
    model = GatedEmbeddings(
        vocab_size=40, feat_dims=[D], word_dim=W, embed_dim=E, batch_norm=True, pad_counts=True
    ).eval()
    for part in ("text.fc1", "text_gate", "video_gate"):
        copy_part(model, source, part, part)
    out = Outputs(model, narrated(0), grad=False)
    video, text = out.stream("video"), out.stream("text")
    assert video.mask is not None
    pooled = F.normalize(video.data.masked_fill(~video.mask[..., None], -1e9).amax(2).flatten(0, 1))
    torch.testing.assert_close(out.clip_feat.flatten(0, 1), gated(state, "GU_video", pooled))
    words = model.text.words(text.data.flatten(0, 2))
    said = F.relu(F.linear(words, state["text_pooling.fc.weight"], state["text_pooling.fc.bias"])).amax(1)
    torch.testing.assert_close(out.narration_feat.flatten(0, 2), gated(state, "GU_text", said))


def test_a_tensor_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    state = howto100m()
    for name, change in (("GU_text.cg.fc.bias", None), ("GU_text.more", torch.zeros(1))):
        changed = (
            {**state, name: change} if change is not None else {n: v for n, v in state.items() if n != name}
        )
        torch.save(changed, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=name):
            folder.load(tmp_path / "w.pth", use="gated_embeddings:GatedEmbeddings")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth is not a file of GatedEmbeddings: it has no tensor"):
        folder.load(tmp_path / "w.pth", use="gated_embeddings:GatedEmbeddings")


@pytest.mark.slow
def test_mil_nces_weights_give_s3dgs_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = S3dG(num_words=30).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = folder.load(tmp_path / "w.pth", use="mil_nce:MilNceModel").eval()
    assert (model.config.vocab_size, model.config.embed_dim, model.config.space_to_depth) == (32, 512, True)
    frames, ids = torch.rand(2, 1, 3, 4, 32, 32), torch.randint(1, 31, (2, 1, 1, 6))
    ids[0, 0, 0, 3:] = 0
    out = Outputs(
        model, Batch({"video": Stream(frames), "text": Stream(ids, ids != 0)}, torch.arange(2)), grad=False
    )
    with torch.no_grad():
        torch.testing.assert_close(out.clip_feat[:, 0], theirs(frames[:, 0]))
        torch.testing.assert_close(out.narration_feat[:, 0, 0], theirs.text(ids[:, 0, 0]))
