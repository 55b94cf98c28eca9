from __future__ import annotations

from pathlib import Path

import pytest

from vlpipe.models.build import build, find
from vlpipe.models.objectives.itm import Itm
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer


def test_use_is_an_import_path_below_or_a_full_one() -> None:
    assert find("itm:Itm", "vlpipe.models.objectives") is Itm
    assert find("vlpipe.models.objectives.itm:Itm", "vlpipe.models") is Itm
    assert (
        build({"use": "itm:Itm", "negatives": "momentum"}, "vlpipe.models.objectives").negatives == "momentum"
    )


def test_a_module_is_found_in_any_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("blip:Blip", "vlpipe.models.systems") is Blip
    for room in ("one", "two"):
        (tmp_path / "house_of_rooms" / room).mkdir(parents=True)
        (tmp_path / "house_of_rooms" / room / "__init__.py").touch()
        (tmp_path / "house_of_rooms" / room / "same.py").write_text(f"class Thing:\n    room = {room!r}\n")
    (tmp_path / "house_of_rooms/__init__.py").touch()
    (tmp_path / "house_of_rooms/two/other.py").write_text("class Thing: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert find("other:Thing", "house_of_rooms").__module__ == "house_of_rooms.two.other"
    assert find("two.same:Thing", "house_of_rooms").room == "two"
    with pytest.raises(ValueError, match=r"may be house_of_rooms\.one\.same or house_of_rooms\.two\.same"):
        find("same:Thing", "house_of_rooms")


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
            r"no module 'itx', neither on the Python path nor below .*, which has .*answer, ",
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
