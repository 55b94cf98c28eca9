"""A model folder of transformers whose files name code of its own: the code is not run, and nobody is asked whether to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    CLIPModel,
)

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.stages.common.scores import load_model, pretrained, processed
from vlpipe.stages.filter.language import classifier

CODE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    classes = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoModelForImageClassification")
    classes += ("AutoModelForObjectDetection", "AutoModelForSequenceClassification")
    own = dict.fromkeys(classes, "own.Thing") | {"AutoTokenizer": ["own.Thing", None]}
    (tmp_path / "own.py").write_text(CODE)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": own}))
    named = {"auto_map": own, "image_processor_type": "Own", "tokenizer_class": "Own"}
    for name in ("preprocessor_config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(named))

    def asked(*_: object) -> str:
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path


def test_code_of_a_model_folder_is_not_run(folder: Path) -> None:
    weights = Weights(path=str(folder), digest="x")
    auto = (AutoModelForImageClassification, AutoModelForObjectDetection, AutoModelForSequenceClassification)
    for cls in auto:
        with pytest.raises(
            VlpipeError, match=f"transformers cannot load it as {cls.__name__}: it needs code of its own"
        ):
            load_model(cls, weights)
    for cls in (AutoTokenizer, AutoImageProcessor):
        with pytest.raises(VlpipeError, match=f"transformers cannot load it as {cls.__name__}"):
            pretrained(cls, str(folder))
    with pytest.raises(VlpipeError, match="AutoImageProcessor"):
        processed(weights)
    with pytest.raises(VlpipeError, match="AutoTokenizer"):
        classifier(str(folder), 1, 8)
    with pytest.raises(VlpipeError, match="CLIPModel"):
        load_model(CLIPModel, weights)
    assert not (folder / "ran").exists()
    assert not (folder / "asked").exists()
    assert not [*folder.rglob("modules/**/own.py")]
