from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from vlpipe.pipeline.errors import SchemaError
from vlpipe.pipeline.shard import heavy
from vlpipe.stages.common.row import LOSSES, TEXTS
from vlpipe.stages.train.train import Train

PAPER: dict[str, Any] = {
    "model": {"use": "blip:Blip"},
    "tokenizer": {"from": "tokenizer"},
    "objectives": ["itc:Itc", {"use": "itm:Itm", "negatives": "momentum"}, {"use": "lm:Lm", "weight": 1.0}],
    "epochs": 20,
    "batch_size": 2880,
    "num_workers": 32,
    "gpu": True,
    "warmup_steps": 3000,
    "schedule": "step_decay",
    "decay_rate": 0.85,
    "teachers": {"ema": {"momentum": 0.995}},
    "streams": {"image": {"augment": {"crop_scale": [0.2, 1], "randaugment": [2, 5]}}},
    "mix": {"human": 2},
}


def train(**more: Any) -> Train:
    return TypeAdapter(Train).validate_json(json.dumps({**PAPER, **more}), strict=True)


def test_a_recipe_as_it_is_written() -> None:
    recipe = train()
    assert recipe.preflight() == []
    assert recipe.objective_specs()[1] == (1.0, "", {"use": "itm:Itm", "negatives": "momentum"})
    assert recipe.micro_batch_size == 90
    assert recipe.estimate(14_000_000) == (
        "97,222 steps of 2,880 = 279,999,360 samples (20.0 epochs of 14,000,000 rows); "
        "32 GPU worker(s), 90 samples at a time on each; 252.4 M parameters, 11.78 GB for checkpoints"
    )
    assert recipe.estimate(0).startswith("20.0 epochs in batches of 2,880; ")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 100}, "batch_size must be a multiple of num_workers x accumulate = 32, got 100"),
        ({"steps": 5000}, "set either `steps` or `epochs`; both are set"),
        ({"epochs": None}, "set either `steps` or `epochs`; neither is set"),
        ({"min_lr": 1.0}, "min_lr must be at least 0 and at most lr = 0.0003, got 1.0"),
        (
            {"model": None},
            "set `model` for a new model, or `init` to start from trained weights; neither is set",
        ),
        (
            {"tokenizer": None},
            "Blip reads texts: set `tokenizer`, or `init` to use the tokenizer stored with it; neither is set",
        ),
        ({"objectives": []}, 'objectives must have at least one entry, such as "lm:Lm"'),
        (
            {"objectives": ["lm:Lm", "lm:Lm"]},
            "objectives: two objectives return a loss named 'lm'; loss names must be unique",
        ),
        (
            {"streams": {"text": {"max_length": 1000}}},
            "streams.text: max_length must be at most 512, the number of positions of the model, got 1000",
        ),
        (
            {"streams": {"text": {"max_lenght": 10}}},
            "streams.text: Text has no parameter 'max_lenght'; did you mean 'max_length'?",
        ),
        (
            {"streams": {"image": {"augment": {"crop": 1}}}},
            "streams.image: augment.crop: Unexpected keyword argument",
        ),
        (
            {"max_text_length": 20, "streams": {"text": {"max_length": 10}}},
            "max_text_length is short for streams.text.max_length; set one of the two",
        ),
        (
            {"streams": {"texts": {}}},
            "streams: Blip reads no stream 'texts'; did you mean 'text'?; it reads image, text",
        ),
        (
            {"objectives": [{"use": "lm:Lm", "view": "masked"}]},
            "objectives: lm:Lm looks at view 'masked', which `views` does not have",
        ),
        (
            {"views": {"masked": [{"use": "mask_text:MaskText", "stream": "txt"}]}},
            "views.masked: MaskText changes stream 'txt', but the model reads image, text",
        ),
        (
            {"model": {"use": "blip:Blip", "parts": "captioner"}, "objectives": ["itm:Itm"]},
            "objectives: Itm needs a model that has more than Blip offers (Matches: Judges whether text and image "
            "belong together; EmbedsImages: Embeds images in a space where dot products compare; EmbedsTexts: Embeds "
            "texts in the space of the images)",
        ),
        (
            {"model": {"use": "blip:Blip", "vison_width": 3}},
            "model: Blip has no parameter 'vison_width'; did you mean vision_width?",
        ),
    ],
)
def test_what_cannot_work_is_said_before_the_run(wrong: dict[str, Any], said: str) -> None:
    assert train(**wrong).preflight() == [said]


def test_an_unknown_objective_or_parameter_is_said_before_the_run() -> None:
    (said,) = train(objectives=["itcc:Itc"]).preflight()
    assert "itcc" in said
    assert "itc, itm, " in said
    (said,) = train(objectives=[{"use": "itc:Itc", "queue": 3}]).preflight()
    assert "unexpected keyword argument 'queue'" in said


@pytest.mark.parametrize("wrong", [{"objektives": []}, {"augments": {"flip": True}}, {"schedule": "cos"}])
def test_unknown_keys_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        train(**wrong)


def test_it_reads_images_and_texts_and_gives_losses() -> None:
    rows = pa.schema([("id", pa.string()), ("texts", TEXTS), heavy("image", pa.binary())])
    assert train().schema(rows) == LOSSES
    with pytest.raises(SchemaError, match="Train reads column 'image', which its input does not have"):
        train().schema(rows.remove(2))


def test_steps_of_epochs(recipe_of: Callable[..., Train]) -> None:
    assert recipe_of(steps=None, epochs=2.5, batch_size=20).num_steps(48) == 6
    assert recipe_of(steps=7).num_steps(48) == 7


def test_as_many_tokens_need_losses_of_single_samples_on_several_workers(
    recipe_of: Callable[..., Train],
) -> None:
    """Losses that compare samples exchange them, so that each worker needs as many. Pictures are not counted."""
    bert = {"use": "bert:Bert", "width": 16, "layers": 1, "heads": 2, "max_text_length": 16}
    masked: dict[str, Any] = {"views": {"mlm": ["mask_text:MaskText"]}}
    masked["objectives"] = [{"use": "masked_lm:MaskedLm", "view": "mlm"}]
    of = replace(recipe_of(group_by_length=True, balance_tokens=True, **masked), model=bert)
    assert of.preflight() == []
    assert replace(of, num_workers=2).preflight() == []
    next_sentence = [*masked["objectives"], {"use": "match:Match", "view": "mlm"}]
    assert "balance_tokens" not in str(replace(of, objectives=next_sentence).preflight())
    (said,) = recipe_of(group_by_length=True, balance_tokens=True).preflight()
    assert "balance_tokens: pictures (stream 'image') have a fixed number of positions" in said


def test_steps_that_differ_search_for_parameters_without_gradient(recipe_of: Callable[..., Train]) -> None:
    (said,) = recipe_of(find_unused_parameters=False, accumulate=2).preflight()
    assert "find_unused_parameters: false does not go with `tasks` or accumulate above 1" in said


def test_a_sample_trains_a_few_steps() -> None:
    """`vlpipe run --sample`: the forecast multiplies the seconds per step."""
    whole = train()
    few = whole.sampled()
    assert isinstance(few, Train)
    assert (few.steps, few.epochs, few.warmup_steps) == (20, None, 10)
    assert few.preflight() == []
    assert (whole.num_steps_for(14_000_000), few.num_steps_for(14_000_000)) == (97_222, 20)
    short = train(epochs=None, steps=10, warmup_steps=1)
    assert short.sampled() is short
    more = train(sample_steps=300).sampled()
    assert isinstance(more, Train)
    assert (more.steps, more.warmup_steps) == (300, 150)
    assert "sample_steps must be at least 1" in str(train(sample_steps=0).preflight())
