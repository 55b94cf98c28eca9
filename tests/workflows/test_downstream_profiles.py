"""Paper profiles of tasks of films, texts and pixels: planned with files of the published names; their models are built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import vlpipe.workflows
from vlpipe.models.optim.frozen import freeze
from vlpipe.models.optim.groups import Defaults, parameter_groups
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.preflight import stand_in
from vlpipe.stages.train.train import Train

FOLDER = Path(vlpipe.workflows.__path__[0], "downstream")
GIVEN = {  # workflow -> files, and folders of files or of weights
    "captioning": ("dataset_coco.json", "coco detector vlp"),
    "dense": (
        "ade20k/training.jsonl ade20k/validation.jsonl instances_train2017.json instances_val2017.json",
        "ade20k/images/training ade20k/images/validation ade20k/annotations/training ade20k/annotations/validation "
        "train2017 val2017 mae",
    ),
    "texts": ("MNLI/train.tsv MNLI/dev_matched.tsv gigaword/train.tsv gigaword/dev.tsv", "unimo roberta"),
    "video_qa": (
        "tvqa/tvqa_train.jsonl tvqa/tvqa_val.jsonl howto100m/vocab.txt howto100m/s3d_howto100m.pth",
        "tvqa/videos univl",
    ),
    "video_subtitles": (
        "tvqa/tvqa_train.jsonl tvqa/tvqa_val.jsonl howto100m/vocab.txt howto100m/s3d_howto100m.pth "
        "youcook2/youcookii_annotations_trainval.json",
        "tvqa/videos youcook2/videos univl",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN)
def test_it_can_be_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files, folders = (one.split() for one in GIVEN[name])
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text("dog\n" if file.endswith("vocab.txt") else "")
        if file == "dataset_coco.json":
            splits = ("train", "restval", "test")
            listed = {"images": [{"filename": "1.jpg", "split": one, "sentences": []} for one in splits]}
            Path(file).write_text(json.dumps(listed))
        if file.endswith(".pth"):
            torch.save({"any": torch.zeros(1)}, file)
    for folder in folders:
        Path(folder).mkdir(parents=True)
        save_file({"any": torch.zeros(1)}, f"{folder}/model.safetensors")
    workflow = Workflow.load(str(FOLDER / f"{name}.yaml"), profile="paper")
    stages = {step.name: step.stage for step in workflow.steps}
    trained = [stage for stage in stages.values() if isinstance(stage, Train)]
    assert (
        len(trained) == {"captioning": 1, "dense": 2, "texts": 4, "video_qa": 1, "video_subtitles": 4}[name]
    )
    for stage in trained:
        model = stand_in(stage, stages)
        assert model is not None
        assert all(parameter.is_meta for parameter in model.parameters())
        freeze(model, freeze=stage.freeze)  # names of the paper's groups are those of parameters
        parameter_groups(model, Defaults(**stage.defaults()), stage.groups)
