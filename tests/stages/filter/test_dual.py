from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModel, AutoTokenizer, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.stages.filter.conftest import WORDS, word_tokenizer
from vlpipe.models.build import find
from vlpipe.models.folder import BELOW
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.model import load
from vlpipe.stages.common.pixels import decode
from vlpipe.stages.common.row import text
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.common.scores import processed
from vlpipe.stages.dual_encoders.of_open_clip import prepared
from vlpipe.stages.filter.clip import ClipScore
from vlpipe.stages.filter.dual import DualScore
from vlpipe.stages.selection.decide import Decide, JudgeRule

Rows = Callable[..., pa.Table]
SENTENCES = ("a red circle", "two dogs", "a blue dog", "red", "ein Hund dogs dogs dogs dogs dogs dogs dogs a")


def mixed(num_rows: int) -> list[list[dict[str, Any]]]:
    return [[text(SENTENCES[(i + j) % 5], "web") for j in range(i % 4)] for i in range(num_rows)]


def scale(model: Any, by: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(by)


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip") / "tiny-siglip"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    texts = {
        **sizes,
        "vocab_size": len(WORDS),
        "max_position_embeddings": 8,
        "pad_token_id": 0,
        "eos_token_id": 2,
    }
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    model = SiglipModel(SiglipConfig(text_config=texts, vision_config=vision))
    scale(model, 3)
    with torch.no_grad():
        model.logit_scale.fill_(1.5)
        model.logit_bias.fill_(-1.0)
    model.save_pretrained(folder)
    tokenizer = word_tokenizer(8)
    tokenizer.model_input_names = ["input_ids"]  # as SigLIP's: padding is read like text
    tokenizer.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def of_library(folder: Path, table: pa.Table) -> list[list[tuple[float, float]]]:
    """(cosine, logit) of each text by the library's own forward pass, one pair at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    prepare, found = processed(Weights(path=str(folder))), []
    for row in table.to_pylist():
        pixels = torch.from_numpy(prepare(decode(row["image"])))[None]
        scores = []
        for entry in row["texts"]:
            tokens = tokenizer(
                [entry["text"]], padding="max_length", truncation=True, max_length=8, return_tensors="pt"
            )
            with torch.inference_mode():
                out = model(pixel_values=pixels, **tokens)
            cosine = torch.cosine_similarity(out.image_embeds, out.text_embeds).item()
            scores.append((cosine, out.logits_per_image[0, 0].item()))
        found.append(scores)
    return found


def columns(stage: DualScore, table: pa.Table) -> list[list[float]]:
    found: list[list[float]] = run_map(stage, table).table[stage.column].to_pylist()
    return found


def test_siglips_cosine_and_probability_are_the_librarys(siglip_folder: Path, image_rows: Rows) -> None:
    table = image_rows(mixed(12))
    model = Weights(path=str(siglip_folder))
    cosines = columns(DualScore(model=model, batch_size=16), table)
    probabilities = columns(DualScore(model=model, batch_size=16, score="probability"), table)
    wanted = of_library(siglip_folder, table)
    for mine, chances, theirs in zip(cosines, probabilities, wanted, strict=True):
        assert mine == pytest.approx([c for c, _ in theirs], abs=1e-5)
        assert chances == pytest.approx([1 / (1 + np.exp(-logit)) for _, logit in theirs], abs=1e-5)
    assert len({round(s, 4) for ss in cosines for s in ss}) > 8


def test_clips_cosine_is_the_librarys_and_that_of_filter_clip(clip_folder: Path, image_rows: Rows) -> None:
    table = image_rows(mixed(12))
    model = Weights(path=str(clip_folder))
    mine = columns(DualScore(model=model, batch_size=16), table)
    for found, theirs in zip(mine, of_library(clip_folder, table), strict=True):
        assert found == pytest.approx([c for c, _ in theirs], abs=1e-5)
    assert run_map(ClipScore(model=model, batch_size=16), table).table["clip_score"].to_pylist() == mine
    with pytest.raises(VlpipeError, match="was not trained with a sigmoid loss"):
        run_map(DualScore(model=model, batch_size=16, score="probability"), table)


def test_two_encoders_stand_side_by_side_and_one_does_not_replace_the_other(
    clip_folder: Path, siglip_folder: Path, image_rows: Rows
) -> None:
    table = image_rows(mixed(5))
    first = DualScore(model=Weights(path=str(clip_folder)), column="clip", batch_size=16)
    second = DualScore(model=Weights(path=str(siglip_folder)), column="siglip", batch_size=16)
    both = run_map(second, run_map(first, table).table)
    assert both.table["clip"].to_pylist() == columns(first, table)
    assert both.table["siglip"].to_pylist() == columns(second, table)
    schema = second.schema(first.schema(table.schema))
    assert [encoder_of(schema, name) for name in ("clip", "siglip")] == ["tiny-clip", "tiny-siglip"]
    again = DualScore(model=Weights(path=str(siglip_folder)), column="clip")
    with pytest.raises(
        SchemaError, match="have scores of tiny-clip in column 'clip', which scores of tiny-siglip"
    ):
        again.schema(schema)
    assert first.schema(schema) == schema  # the same judge again, after texts were added


def test_only_texts_of_the_sources_that_are_not_dropped_are_scored(
    clip_folder: Path, image_rows: Rows
) -> None:
    texts = [[text("red", "web"), text("red", "synth"), text("red", "synth", kept=False, why="junk")]]
    stage = DualScore(model=Weights(path=str(clip_folder)), sources=("synth",), batch_size=16)
    ((web, synth, gone),) = columns(stage, image_rows(texts))
    assert web is None
    assert gone is None
    assert isinstance(synth, float)


def test_a_model_without_two_encoders_is_refused(vit_folder: Path, image_rows: Rows) -> None:
    with pytest.raises(VlpipeError, match="does not embed images and texts"):
        run_map(DualScore(model=Weights(path=str(vit_folder)), batch_size=16), image_rows([[]]))


def test_a_clip_of_open_clip_is_read_without_open_clip(open_clip_folder: Path, image_rows: Rows) -> None:
    """Against the model's own outputs, one pair at a time, over pictures prepared as its config says."""
    table = image_rows(mixed(8))
    found = columns(DualScore(model=Weights(path=str(open_clip_folder)), batch_size=16), table)
    model = load(Weights(path=str(open_clip_folder)), 16)
    for row, scores in zip(table.to_pylist(), found, strict=True):
        image = model.embed_images(torch.from_numpy(prepared({}, 32, decode(row["image"])))[None])[0]
        texts = [
            model.embed_texts(*model.tokenizer.encode([t["text"]], 16, keep_end=True))[0]
            for t in row["texts"]
        ]
        assert scores == pytest.approx([float(image @ t) for t in texts], abs=1e-5)
    assert len({round(s, 4) for ss in found for s in ss}) > 8


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP in open_clip's format, with its preprocessing: the shorter side scaled, the middle cut out."""
    folder = tmp_path_factory.mktemp("open_clip") / "tiny-open-clip"
    torch.manual_seed(0)
    tokenizer = Tokenizer.train_bpe([" ".join(SENTENCES)] * 20, 560, "clip")
    sizes = {"image_size": 32, "patch_size": 16, "vision_width": 64, "vision_layers": 2, "vision_heads": 1}
    sizes |= {"text_width": 64, "text_layers": 2, "text_heads": 1, "max_text_length": 16, "embed_dim": 16}
    model = find("clip:Clip", BELOW).from_spec(sizes, tokenizer)
    scale(model, 4)
    model.export(folder, "open_clip", tokenizer)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def test_a_picture_is_prepared_as_open_clip_says() -> None:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (30, 47, 3), dtype=np.uint8))
    for size in ((47, 30), (30, 47), (20, 20)):
        one = image.resize(size)
        pixels = prepared({"mean": [0.5] * 3, "std": [0.25] * 3}, 16, one)
        short = min(size)
        scaled = one.resize(tuple(int(16 * side / short) for side in size), Image.Resampling.BICUBIC)
        left, top = (round((side - 16) / 2) for side in scaled.size)
        wanted = np.asarray(scaled)[top : top + 16, left : left + 16].transpose(2, 0, 1) / 255
        assert pixels == pytest.approx((wanted - 0.5) / 0.25, abs=1e-5)
    squashed = prepared({"mean": [0] * 3, "std": [1] * 3, "resize_mode": "squash"}, 16, image)
    assert squashed == pytest.approx(
        np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    )
    with pytest.raises(VlpipeError, match="resize_mode 'longest' is not known"):
        prepared({"resize_mode": "longest"}, 16, image)


def test_open_clips_cosine_is_open_clips_own(open_clip_folder: Path, image_rows: Rows) -> None:
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    table = image_rows(mixed(12))
    found = columns(DualScore(model=Weights(path=str(open_clip_folder)), batch_size=16), table)
    compare(open_clip, open_clip_folder, table, found)


def compare(open_clip: Any, folder: Path, table: pa.Table, found: list[list[float]]) -> None:
    model, prepare = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    for row, scores in zip(table.to_pylist(), found, strict=True):
        with torch.inference_mode():
            image = model.eval().encode_image(prepare(decode(row["image"]))[None], normalize=True)
            texts = [model.encode_text(tokenizer([t["text"]]), normalize=True) for t in row["texts"]]
        assert scores == pytest.approx([float((image * t).sum()) for t in texts], abs=1e-4)
    assert len({round(s, 4) for ss in found for s in ss}) > 8


@pytest.mark.slow
def test_siglip_of_open_clip_gives_open_clips_own_scores(
    open_clip_folder: Path, image_rows: Rows, tmp_path: Path
) -> None:
    """SigLIP over a ViT of timm, a network that open_clip builds itself."""
    open_clip = pytest.importorskip("open_clip", exc_type=ImportError)
    pytest.importorskip("timm")
    folder = tmp_path / "tiny-siglip"
    shutil.copytree(open_clip_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    vision = {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_pool": "map",
        "timm_proj": "none",
    }
    texts = {
        "context_length": 16,
        "vocab_size": 560,
        "hf_tokenizer_name": "tokenizer",
        "width": 192,
        "heads": 3,
    }
    texts |= {
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "tokenizer_kwargs": {},
    }
    model = {
        "embed_dim": 192,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": vision,
        "text_cfg": texts,
    }
    prepare = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}
    config = {"model_cfg": model, "preprocess_cfg": prepare}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    network = open_clip.CustomTextCLIP(**{k: v for k, v in model.items() if k != "custom_text"})
    scale(network.text, 3)
    save_file(network.state_dict(), folder / "open_clip_model.safetensors")
    table = image_rows(mixed(12))
    weights = Weights(path=str(folder))
    found = columns(DualScore(model=weights, batch_size=16), table)
    compare(open_clip, folder, table, found)
    chances = columns(DualScore(model=weights, batch_size=16, score="probability"), table)
    grown, bias = float(network.logit_scale.detach().exp()), float(network.logit_bias.detach())
    for mine, cosines in zip(chances, found, strict=True):
        assert mine == pytest.approx([1 / (1 + np.exp(-(grown * c + bias))) for c in cosines], abs=1e-4)


def test_flagged_rows_are_judged_anew(siglip_folder: Path, image_rows: Rows) -> None:
    """Rows whose content is not what their list says get scores, and are decided by them; the others are as they were."""
    images = image_rows([[] for _ in range(6)])["image"].to_pylist()
    images[4] = b"not decoded"
    table = image_rows([[text(SENTENCES[i % 5], "web")] for i in range(6)], images)
    matches = [True, False, None, False, True, True]
    flagged = table.append_column("hash_matches", pa.array(matches, pa.bool_()))
    stage = DualScore(model=Weights(path=str(siglip_folder)), encoder="tiny", flagged_only=True)
    out = run_map(stage, flagged)
    assert out.rejects == []
    found = out.table["dual_score"].to_pylist()
    every = run_map(replace(stage, flagged_only=False), flagged.take([1, 3])).table["dual_score"].to_pylist()
    assert [one == [None] for one in found] == [matches[i] is not False for i in range(6)]
    assert [found[1], found[3]] == every
    low = min(every)[0]
    rule = JudgeRule(
        column="dual_score", op=">", value=low, encoder="tiny", on_missing="keep", id="other_image"
    )
    kept = [ts[0]["kept"] for ts in run_map(Decide(rules=(rule,)), out.table).table["texts"].to_pylist()]
    assert kept.count(False) == 1
    assert kept[1 if every[0] < every[1] else 3] is False
    with pytest.raises(SchemaError, match="reads column 'hash_matches', which its input does not have"):
        stage.schema(table.schema)
