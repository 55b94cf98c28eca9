"""A model of any class as a folder: written, found again by what the folder says, and nothing else run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlpipe.models import folder
from vlpipe.models.interface.model import Model
from vlpipe.models.systems.image_text.blip.checkpoints import export_captioner
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer

Make = Callable[..., Any]
OWN = """
import torch
from torch import Tensor, nn
from vlpipe.models.interface.model import Model


class Small(Model):
    def __init__(self, *, width: int, bias: bool = True, sizes: list[int] | None = None) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 2, bias=bias)
        self.steps = nn.Parameter(torch.zeros(len(sizes or [])))

    def adapted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**state, "layer.weight": state["layer.weight"][:, : self.config.width]}


class NoModel(nn.Linear):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `own_small`, a file outside the package."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/own_small.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "lib"))
    import own_small

    yield own_small
    del sys.modules["own_small"]


def renamed(target: Path, **fields: Any) -> Path:
    """The folder with these fields of config.json changed."""
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **fields}))
    return target


def test_saved_and_loaded_is_the_same_model(own: Any, tmp_path: Path) -> None:
    model = own.Small(width=3, sizes=[1, 2])
    folder.save(model, tmp_path / "m")
    config = json.loads((tmp_path / "m/config.json").read_text())
    assert config == {
        "format": "vlpipe.model",
        "model": "own_small:Small",
        "width": 3,
        "bias": True,
        "sizes": [1, 2],
    }
    again = folder.load(tmp_path / "m")
    assert type(again) is own.Small
    assert vars(again.config) == vars(model.config)
    assert all(torch.equal(v, again.state_dict()[n]) for n, v in model.state_dict().items())
    folder.save(again, tmp_path / "n")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "m" / name).read_bytes() == (tmp_path / "n" / name).read_bytes()


def test_changes_replace_config_and_the_model_adapts_its_weights(own: Any, tmp_path: Path) -> None:
    model = own.Small(width=3)
    folder.save(model, tmp_path)
    smaller = folder.load(tmp_path, use="own_small:Small", width=2)
    assert torch.equal(smaller.layer.weight, model.layer.weight[:, :2])
    with pytest.raises(ValueError, match="model: Small has no parameter 'widht'; did you mean width"):
        folder.load(tmp_path, widht=2)
    with pytest.raises(ValueError, match=r"own_small:Small: the weights do not fit: 1 unknown: layer\.bias"):
        folder.load(tmp_path, bias=False)


@pytest.mark.parametrize("name", ["os:system", "subprocess:Popen", "own_small:NoModel", "torch.nn:Linear"])
def test_a_folder_names_a_model_or_is_refused(own: Any, tmp_path: Path, name: str) -> None:
    folder.save(own.Small(width=3), tmp_path)
    with pytest.raises(ValueError, match=rf"config\.json names '{name}', which is not a model"):
        folder.load(renamed(tmp_path, model=name))


def test_a_stdlib_module_is_not_even_imported(own: Any, tmp_path: Path) -> None:
    folder.save(own.Small(width=3), tmp_path)
    sys.modules.pop("antigravity", None)
    with pytest.raises(ValueError, match="which is not a model"):
        folder.load(renamed(tmp_path, model="antigravity:fly"))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model": "gone_module:Gone"}, "was made by gone_module:Gone, which cannot be imported"),
        ({"model": None}, r"config\.json names no model"),
        (
            {"format": "vlpipe.models.unheard"},
            r"of format 'vlpipe\.models\.unheard'; known: .*vlpipe\.models\.blip",
        ),
        ({"format": None, "model_type": "unheard"}, "of transformers model_type 'unheard'; known: .*blip"),
    ],
)
def test_an_unknown_class_or_format_is_named(
    own: Any, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    folder.save(own.Small(width=3), tmp_path)
    with pytest.raises(ValueError, match=said):
        folder.load(renamed(tmp_path, **fields))


def test_no_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model: no config\.json in "):
        folder.load(tmp_path)


def test_blips_own_format_and_transformers_folders_still_load(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    blip = make_blip()
    blip.save(tmp_path / "ours")
    export_captioner(blip, tokenizer, tmp_path / "theirs")
    ours, theirs = (
        folder.load(tmp_path / "ours"),
        folder.load(tmp_path / "theirs", use="blip:Blip", dropout=0.3),
    )
    assert (type(ours), type(theirs)) == (Blip, Blip)
    assert ours.config == blip.config
    assert (theirs.config.parts, theirs.config.dropout) == ("captioner", 0.3)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, blip.state_dict()[name])
    folder.save(blip, tmp_path / "again")  # as before: its own format, not the general one
    assert (tmp_path / "again/config.json").read_bytes() == (tmp_path / "ours/config.json").read_bytes()


def test_another_class_than_the_wanted_one_is_refused(own: Any, make_blip: Make, tmp_path: Path) -> None:
    make_blip().save(tmp_path / "blip")
    folder.save(own.Small(width=3), tmp_path / "small")
    with pytest.raises(ValueError, match="holds a blip:Blip, not a own_small:Small"):
        folder.load(tmp_path / "blip", use="own_small:Small")
    with pytest.raises(ValueError, match="holds a own_small:Small, not a blip:Blip"):
        folder.load(tmp_path / "small", use="blip:Blip")


def test_what_a_constructor_needs_is_said() -> None:
    class Needy(Model):
        def __init__(self, *, width: int, vocab_size: int) -> None:
            super().__init__()
            self.words = nn.Embedding(vocab_size, width)

        def text_feat(self, out: Any) -> Tensor:
            return self.words.weight

    class Words:
        vocab_size = 7

    assert Needy.from_spec({"width": 2}, Words()).words.weight.shape == (7, 2)
    with pytest.raises(ValueError, match="model: Needy needs vocab_size"):
        Needy.from_spec({"width": 2})


def test_the_classes_of_all_rooms_of_layouts_are_known() -> None:
    known = {cls.__name__ for cls in folder._shipped()}
    assert {"Blip", "Blip2", "Clip", "Mae", "Beit", "Lxmert", "Bert", "Gpt"} <= known
