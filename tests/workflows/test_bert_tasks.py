"""The paper's profile of workflows/bert_tasks.yaml: published files and a BERT of transformers, small ones here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForPreTraining

import vlpipe.workflows
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.workflow.load import Workflow
from vlpipe.stages.train.build import build_model, load_tokenizer
from vlpipe.stages.train.train import Train


def test_it_finetunes_a_published_bert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Tokenizer.train(["a b c d"] * 3, 40).save("whole")
    words = Path("whole/vocab.txt").read_text().splitlines()
    published = [word for word in words if word not in ("[DEC]", "[ENC]")]
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 40}
    BertForPreTraining(BertConfig(vocab_size=len(published), **sizes)).save_pretrained("bert-base-uncased")
    Path("bert-base-uncased/vocab.txt").write_text("\n".join(published) + "\n")
    Path("glue/RTE").mkdir(parents=True)
    Path("squad").mkdir()
    for split in ("train", "dev"):
        Path(f"glue/RTE/{split}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n")
        Path(f"squad/{split}-v1.1.json").write_text(json.dumps({"data": []}))
    size = len(published) + 2
    shipped = Path(vlpipe.workflows.__path__[0]) / "bert_tasks.yaml"
    workflow = Workflow.load(
        str(shipped),
        profile="paper",
        sets=[f"rte.model.vocab_size={size}", f"squad.model.vocab_size={size}"],
    )
    stages = {step.name: step.stage for step in workflow.steps}
    assert "pretrain" not in stages
    for name, head in (("rte", "class_head"), ("squad", "span_head")):
        recipe = stages[name]
        assert isinstance(recipe, Train)
        model = build_model(recipe, load_tokenizer(recipe))
        assert getattr(model, head).weight.shape == (2, 24)
        assert len(model.encoder.embed.words.weight) == size
