from __future__ import annotations

import pytest

from vlpipe.models.build import build, find
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.systems.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer


def test_use_is_an_import_path_below_or_a_full_one() -> None:
    assert find("itm:Itm", "vlpipe.models.objectives") is Itm
    assert find("vlpipe.models.objectives.itm:Itm", "vlpipe.models") is Itm
    assert (
        build({"use": "itm:Itm", "negatives": "momentum"}, "vlpipe.models.objectives").negatives == "momentum"
    )


def test_a_model_takes_the_vocabulary_from_the_tokenizer(tokenizer: Tokenizer) -> None:
    spec = {"use": "blip:Blip", "image_size": 16, "patch_size": 8, "vision_width": 16, "vision_layers": 1}
    spec |= {"vision_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2}
    blip = build(spec, "vlpipe.models.systems", tokenizer=tokenizer)
    assert isinstance(blip, Blip)
    assert (blip.config.vocab_size, blip.config.enc) == (tokenizer.vocab_size, tokenizer.enc)
    with pytest.raises(ValueError, match=r"Blip has no parameter 'image_siz'; did you mean image_size\?"):
        build({**spec, "image_siz": 3}, "vlpipe.models.systems", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="text_width must be a multiple of text_heads = 3, got 16"):
        build({**spec, "text_heads": 3}, "vlpipe.models.systems", tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (
            {"use": "itx:Itc"},
            r"no module 'itx', neither on the Python path nor below .*, which has answer, infonce, itc, itm, lm, ",
        ),
        ({"use": "itc:Itk"}, r"vlpipe.models.objectives.itc has no class 'Itk'; it has Itc"),
        ({"use": "itc"}, r"use must be 'module:Class', got 'itc'"),
        ({"image_size": 3}, r"the key 'use' .* is missing"),
        ({"use": "itm:Itm", "hard": 1}, r"itm:Itm: .*unexpected keyword argument 'hard'"),
        ({"use": "itm:Itm", "negatives": "easy"}, r"negatives must be student or momentum, got 'easy'"),
    ],
)
def test_what_cannot_be_built_is_explained(spec: dict[str, object], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        build(spec, "vlpipe.models.objectives")
