"""Next-word figures against a plain loop over the tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.systems.text.gpt import Gpt
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, Weights
from vlpipe.pipeline.testing import dataset, run_gather
from vlpipe.stages.caption.generate import Caption
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.evaluate.next_word import NextWord
from vlpipe.stages.train.train import Train

TOLD = ["a red circle", "a red square and a blue circle", "a", "a blue circle to the left of a red square"]


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    tokenizer = Tokenizer.train(TOLD * 3, 80)
    torch.manual_seed(0)
    sizes = {"width": 16, "layers": 1, "heads": 2, "max_text_length": 9, "init_std": 0.5}
    model = Gpt(vocab_size=tokenizer.vocab_size, start=tokenizer.start, end=tokenizer.end, **sizes)
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model/tokenizer")
    return Weights(path=str(tmp_path / "model"))


def rows(source: str = "human") -> pa.Table:
    schema = pa.schema([("id", pa.string()), ("texts", TEXTS)])
    found = [
        {"id": str(i), "texts": [text(one, source), text("no human", "web")]} for i, one in enumerate(TOLD)
    ]
    return pa.Table.from_pylist(found, schema)


def test_figures_are_those_of_a_loop(weights: Weights, tmp_path: Path) -> None:
    stage = NextWord(model=weights, batch_size=3, max_text_length=9)
    got = run_gather(stage, [dataset(tmp_path, rows())], tmp_path / "run").table.to_pylist()
    model, tokenizer = folder.load(weights.path).eval(), Tokenizer.load(weights.path)
    nats, right, tokens = 0.0, 0, Counter[int]()
    for one in TOLD:
        ids, _ = tokenizer.encode_one(one, 9)
        for at in range(1, len(ids)):
            cache = model.start_alone(1, 9)
            hidden = model.step_text(torch.tensor([ids[:at]]), cache)[0, -1]
            odds = model.predict(hidden).log_softmax(-1)
            nats -= float(odds[ids[at]])
            right += int(odds.argmax()) == ids[at]
            tokens[ids[at]] += 1
    num = tokens.total()
    wanted = {"nats": nats / num, "top1": right / num, "top1_prior": max(tokens.values()) / num}
    assert {r["name"]: r["value"] for r in got} == pytest.approx(wanted, rel=1e-5)
    assert {r["num_rows"] for r in got} == {num}


def test_no_text_of_the_source_is_an_error(weights: Weights, tmp_path: Path) -> None:
    with pytest.raises(VlpipeError, match="no text of source 'human'"):
        run_gather(
            NextWord(model=weights, max_text_length=9), [dataset(tmp_path, rows("web"))], tmp_path / "run"
        )


def test_who_writes_with_and_who_without_an_image_is_known_before_the_run(tmp_path: Path) -> None:
    """A GPT has no captions of images, a BLIP no texts without one; both predict the next word."""
    Tokenizer.train(TOLD * 3, 80).save(tmp_path / "vocabulary")
    made = {
        "gpt": {"use": "gpt:Gpt", "width": 16, "layers": 1, "heads": 2},
        "blip": {
            "use": "blip:Blip",
            "image_size": 16,
            "patch_size": 8,
            "vision_width": 16,
            "vision_layers": 1,
        }
        | {"vision_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2},
    }
    steps = {
        name: Train(
            model=model, tokenizer=File(path=str(tmp_path / "vocabulary")), objectives=["lm:Lm"], steps=1
        )
        for name, model in made.items()
    }
    for name, step in steps.items():
        assert step.preflight() == []
        weights = Weights(step=name)
        caption, next_word = (
            s.preflight_after(steps) for s in (Caption(model=weights), NextWord(model=weights))
        )
        said = f"step {name!r} makes a {name.capitalize()}, which does not have what this step needs "
        assert caption == ([said + "(Writes texts about images)"] if name == "gpt" else [])
        assert next_word == ([said + "(Writes texts without an image)"] if name == "blip" else [])
