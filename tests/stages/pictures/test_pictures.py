"""Pictures for people: where each pixel of a panel comes from, which words are shown, and what cannot be drawn."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models import folder
from vlpipe.models.interface.model import Model
from vlpipe.models.systems.image_text.albef import Albef
from vlpipe.models.systems.images.mae import Mae
from vlpipe.models.systems.pretext.colorization import Colorization
from vlpipe.models.systems.pretext.inpainting import ContextEncoder
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.common.pixels import load_pixels
from vlpipe.stages.common.row import text
from vlpipe.stages.drawing.draw import DRAWN
from vlpipe.stages.pictures.drawn import DrawnSheets
from vlpipe.stages.pictures.pseudo_targets import PseudoTargets
from vlpipe.stages.pictures.reconstructions import Reconstructions, images_of_patches
from vlpipe.stages.pictures.rows import GAP, PICTURES, denormalised, sheet, shown

Rows = Callable[..., pa.Table]


def saved(model: Model, tmp_path: Path, tokenizer: Tokenizer | None = None) -> Weights:
    folder.save(model, tmp_path / "model")
    if tokenizer is not None:
        tokenizer.save(tmp_path / "model" / "tokenizer")
    return Weights(path=str(tmp_path / "model"))


def panels_of(row: dict[str, Any], side: int) -> dict[str, np.ndarray]:
    whole = np.asarray(Image.open(io.BytesIO(row["image"])))
    assert whole.shape == (row["height"], row["width"], 3)
    return {name: whole[:, k * (side + GAP) :][:, :side] for k, name in enumerate(row["panels"])}


def drawn(stage: Any, table: pa.Table, tmp_path: Path) -> list[dict[str, Any]]:
    out = run_gather(stage, [dataset(tmp_path / "rows", table)], tmp_path / "out")
    assert out.table.schema == PICTURES == stage.schema(table.schema)
    return out.table.to_pylist()


def small_mae() -> Mae:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 1, "heads": 2}
    return Mae(**sizes, decoder_width=16, decoder_layers=1, decoder_heads=2)


def test_patches_of_an_image_are_put_together_again() -> None:
    from vlpipe.models.objectives.pixel_mse import pixels_of_patches

    pixels = torch.randn(1, 3, 16, 16)
    assert torch.equal(images_of_patches(pixels_of_patches(pixels, 4)[0], 16), pixels[0])


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_mae_keeps_what_is_visible_and_fills_the_rest(image_rows: Rows, tmp_path: Path, ratio: float) -> None:
    corrupt = [{"use": "mask_patches:MaskPatches", "patch": 4, "ratio": ratio}]
    table = image_rows([[]] * 5)
    stage = Reconstructions(model=saved(small_mae(), tmp_path), corrupt=corrupt, num=3)
    rows = drawn(stage, table, tmp_path)
    assert [row["rows"] for row in rows] == [["row0"], ["row1"], ["row2"]]
    masks = []
    for row, data in zip(rows, table["image"].to_pylist()[:3], strict=True):
        panels = panels_of(row, 16)
        assert list(panels) == ["original", "masked", "output", "prediction"]
        assert np.array_equal(panels["original"], shown(denormalised(load_pixels([data], 16)[0])))
        hidden = (panels["masked"] == 128).all(2)
        assert hidden.mean() == ratio
        assert np.array_equal(panels["masked"][~hidden], panels["original"][~hidden])
        assert np.array_equal(panels["output"][~hidden], panels["original"][~hidden])
        assert np.array_equal(panels["output"][hidden], panels["prediction"][hidden])
        masks.append(hidden)
    assert not np.array_equal(masks[0], masks[1])
    again = run_gather(stage, [dataset(tmp_path / "b", table.slice(1, 1))], tmp_path / "c").table.to_pylist()
    assert again[0]["image"] == rows[1]["image"], "a picture depends on its row alone"


def test_normalised_patches_get_the_mean_and_deviation_of_the_original(
    image_rows: Rows, tmp_path: Path
) -> None:
    """A model that predicts 0 everywhere shows each patch's mean."""
    model = small_mae()
    torch.nn.init.zeros_(model.to_pixels.weight)
    corrupt = ["mask_patches:MaskPatches"]
    with pytest.raises(ValueError, match="mask_patches"):
        drawn(
            Reconstructions(
                model=saved(model, tmp_path), corrupt=[{"use": corrupt[0], "patch": 4, "ratio": 1}]
            ),
            image_rows([[]]),
            tmp_path,
        )
    stage = Reconstructions(model=saved(model, tmp_path), corrupt=[{"use": corrupt[0], "patch": 4}], num=1)
    panels = panels_of(drawn(stage, image_rows([[]]), tmp_path)[0], 16)
    means = panels["original"].reshape(4, 4, 4, 4, 3).astype(float)
    patch = panels["prediction"].reshape(4, 4, 4, 4, 3)
    grey = denormalised(np.zeros((3, 1, 1), np.float32))[:, 0, 0]
    assert np.ptp(patch, axis=(1, 3)).max() == 0, "one colour per patch"
    normal = (means / 255 - grey).mean((1, 3))  # roughly: the mean over colours is of normalised values
    assert np.corrcoef(normal.mean(2).ravel(), patch[:, 0, :, 0].mean(2).ravel())[0, 1] > 0.99


def test_a_hole_is_filled_and_a_grey_image_is_coloured(image_rows: Rows, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = ContextEncoder(image_size=32, bottleneck=8, encoder_width=4, decoder_width=4)
    stage = Reconstructions(model=saved(encoder, tmp_path / "a"), corrupt=["holes:Holes"], num=1)
    panels = panels_of(drawn(stage, image_rows([[]]), tmp_path / "a")[0], 32)
    inside = np.zeros((32, 32), bool)
    inside[8:24, 8:24] = True
    assert (panels["masked"][inside] == 128).all()
    assert np.array_equal(panels["output"][~inside], panels["original"][~inside])
    assert not np.array_equal(panels["output"][inside], panels["original"][inside])
    colours = Colorization(image_size=32, width=2)
    stage = Reconstructions(model=saved(colours, tmp_path / "b"), num=1)
    panels = panels_of(drawn(stage, image_rows([[]]), tmp_path / "b")[0], 32)
    assert list(panels) == ["original", "grey", "output"]
    assert np.ptp(panels["grey"].astype(int), axis=2).max() <= 1
    with pytest.raises(VlpipeError, match="needs 'hidden' of the image, which no corruptor"):
        drawn(Reconstructions(model=saved(encoder, tmp_path / "c")), image_rows([[]]), tmp_path / "c")


def test_drawn_images_stand_by_rank_under_their_text(tmp_path: Path) -> None:
    def png(value: int) -> bytes:
        return sheet([np.full((4, 4, 3), value, np.uint8)], 1)[0]

    rows = [
        {
            "id": f"{p}-{k}",
            "parent": p,
            "texts": [text(f"a {p}", "human")],
            "draw": k,
            "rank": 2 - k,
            "score": 0.25 * k,
        }
        | {"image": png(10 * k)}
        for p in ("ring", "box")
        for k in range(3)
    ]
    table = pa.Table.from_pylist(rows, DRAWN)
    found = drawn(DrawnSheets(per_text=2), table, tmp_path)
    assert [(row["title"], row["rows"], row["panels"]) for row in found] == [
        ("a ring", ["ring"], ["1: 0.50", "2: 0.25"]),
        ("a box", ["box"], ["1: 0.50", "2: 0.25"]),
    ]
    panels = panels_of(found[0], 4)
    assert [int(panel.mean()) for panel in panels.values()] == [20, 10]
    assert len(drawn(DrawnSheets(num=1), table, tmp_path / "one")) == 1


def test_the_five_likeliest_words_are_those_of_the_model(image_rows: Rows, tmp_path: Path) -> None:
    tokenizer = Tokenizer.train(["a red ring on blue box green"] * 5, 60)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "image_size": 8,
        "patch_size": 4,
        "vision_width": 8,
        "vision_layers": 1,
        "vision_heads": 2,
    }
    texts: dict[str, Any] = {
        "text_width": 8,
        "text_layers": 1,
        "fusion_layers": 1,
        "text_heads": 2,
        "embed_dim": 6,
    }
    model = Albef.from_spec({**sizes, **texts, "max_text_length": 12, "init_std": 1.0}, tokenizer).eval()
    table = image_rows([[text("a red ring", "human")], [text("a box", "web")], [text("red box", "human")]])
    stage = PseudoTargets(model=saved(model, tmp_path, tokenizer), max_text_length=8)
    rows = drawn(stage, table, tmp_path)
    assert [row["id"] for row in rows] == ["row0", "row2"], "row1 has no text of the source"
    ids, mask = tokenizer.encode([rows[1]["title"].replace("[MASK]", "ring")], 8)
    ids[ids == tokenizer.ids("ring")[0]] = tokenizer.mask
    at = int((ids[0] == tokenizer.mask).nonzero()[0, 0])
    from vlpipe.models.interface.batch import Stream
    from vlpipe.models.interface.outputs import Outputs
    from vlpipe.stages.common.model import batch_of

    pixels = torch.from_numpy(load_pixels([table["image"][2].as_py()], 8))
    out = Outputs(model, batch_of({"text": Stream(ids, mask.bool()), "image": Stream(pixels)}), grad=False)
    shares = model.predict_words(out.word_hidden[0, at]).softmax(0)
    best = shares.argsort(descending=True)[:5].tolist()
    wanted = ", ".join(f"{tokenizer.tokens[i]} {100 * shares[i].item():.1f} %" for i in best)
    assert rows[1]["lines"][0] == wanted
    true = rows[1]["lines"][1].removeprefix("masked: ").split(",")[0]
    assert rows[1]["title"].replace("[MASK]", true) == "red box"


def test_a_model_that_makes_no_pictures_is_named(image_rows: Rows, tmp_path: Path, weights: Weights) -> None:
    from vlpipe.models.systems.images.vit import Vit

    vit = Vit(num_classes=2, image_size=8, patch_size=4, width=8, layers=1, heads=2)
    with pytest.raises(VlpipeError, match="a Vit reconstructs no pixels, fills no holes"):
        drawn(Reconstructions(model=saved(vit, tmp_path)), image_rows([[]]), tmp_path)
