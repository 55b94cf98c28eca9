from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.pipeline.errors import SchemaError, VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.shard import is_heavy
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.features.embed import Embed, tiny

Rows = Callable[..., pa.Table]


def vectors(table: pa.Table) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), np.float32)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def test_it_adds_a_heavy_unit_vector_of_the_models_contrastive_space(
    weights: Weights, image_rows: Rows
) -> None:
    table = image_rows([[]] * 5)
    out = run_map(Embed(model=weights, batch_size=16), table).table
    field = out.schema.field("embedding")
    assert is_heavy(field)
    assert field.type == pa.list_(pa.float32(), 8)
    model = Blip.load(weights.path).eval()
    with torch.no_grad():
        wanted = model.image_features(
            model.encode_image(torch.from_numpy(load_pixels(table["image"].to_pylist(), 16)))
        )
    np.testing.assert_allclose(vectors(out), wanted.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(vectors(out), axis=1), 1, atol=1e-6)


def test_equal_bits_in_any_company(weights: Weights, image_rows: Rows) -> None:
    table = image_rows([[]] * 20)
    for stage in (Embed(model=weights, batch_size=16), Embed()):
        together = vectors(run_map(stage, table).table)
        assert np.array_equal(vectors(run_map(stage, table.slice(4, 7)).table), together[4:11])
        assert np.array_equal(vectors(run_map(stage, table.slice(9, 1)).table), together[9:10])


def test_tiny_is_a_centred_unit_thumbnail() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    wanted = pixels.astype(np.float64).ravel()
    wanted -= wanted.mean()
    np.testing.assert_allclose(tiny(encoded(pixels)), wanted / np.linalg.norm(wanted), atol=1e-7)


def test_tiny_tells_re_encodes_from_other_pictures() -> None:
    def picture(seed: int) -> Image.Image:
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        return Image.fromarray(small).resize((96, 80), Image.Resampling.BICUBIC)

    one, other = np.asarray(picture(0)), np.asarray(picture(1))
    smaller = np.asarray(picture(0).resize((48, 40)))
    brighter = (one.astype(np.float32) * 0.8 + 30).astype(np.uint8)
    same = [
        tiny(encoded(p, kind)) @ tiny(encoded(one))
        for p, kind in ((one, "JPEG"), (smaller, "PNG"), (brighter, "PNG"))
    ]
    assert min(same) > 0.99
    assert tiny(encoded(other)) @ tiny(encoded(one)) < 0.7


def test_an_even_grey_gets_the_even_vector() -> None:
    grey = tiny(encoded(np.full((9, 9, 3), 77, np.uint8)))
    np.testing.assert_allclose(grey, 768**-0.5, rtol=1e-6)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert abs(grey @ tiny(encoded(picture))) < 1e-6


def test_unreadable_images_are_rejected(weights: Weights, image_rows: Rows) -> None:
    good = image_rows([[]])["image"][0].as_py()
    for stage in (Embed(model=weights, batch_size=16), Embed()):
        out = run_map(stage, image_rows([[]] * 3, [good, b"no image", good]))
        assert out.table["id"].to_pylist() == ["row0", "row2"]
        assert [(r.id, r.kind, r.why) for r in out.rejects] == [("row1", "fault", "not_an_image")]
    assert run_map(Embed(), image_rows([[]], [b""])).table.num_rows == 0


def test_the_length_is_known_before_any_data(
    weights: Weights, image_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = image_rows([]).schema

    def length(stage: Embed) -> int:
        return stage.schema(schema).field("embedding").type.list_size

    assert length(Embed()) == 768
    assert length(Embed(model=weights)) == 8
    later = Weights(step="pretrain")
    assert length(Embed(model=later, dim=64)) == 64
    monkeypatch.chdir(weights.path)  # a config.json that happens to lie here is not the step's
    with pytest.raises(SchemaError, match=r"write `dim: 256` \(the `embed_dim` of that model\)"):
        length(Embed(model=later))


def test_a_wrong_length_is_an_error(weights: Weights) -> None:
    assert Embed(dim=99).preflight() == [
        "without `model`, dim must be 768, got 99; set `model`, or leave out dim"
    ]
    with pytest.raises(VlpipeError, match="the model has embed_dim 8, but the step sets dim: 64"):
        Embed(model=weights, dim=64).open().__enter__()
