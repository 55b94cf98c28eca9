"""LXMERT against transformers' `LxmertForPreTraining`: the same weights give the same outputs, losses and gradients.

Tolerances: outputs 1e-5 absolute, losses 1e-5, gradients 1e-5 of their largest value.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlpipe.models import folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import Answers, FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.layouts.regions import lxmert as layout
from vlpipe.models.objectives.answer import Answer
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.objectives.region import RegionClass, RegionFeatures
from vlpipe.models.systems.regions.lxmert import Lxmert

ROWS, WORDS, REGIONS, FEAT = 5, 9, 6, 12
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "feat_dim": FEAT,
    "num_objects": 11,
    "num_attributes": 7,
    "num_answers": 5,
    "width": 32,
    "heads": 4,
    "language_layers": 2,
    "object_layers": 2,
    "cross_layers": 2,
    "max_text_length": 16,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder of theirs, and their model in eval mode: weights large enough that all its parts matter."""
    from transformers import LxmertConfig, LxmertForPreTraining

    torch.manual_seed(0)
    config = LxmertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=128,
        num_attention_heads=4,
        num_qa_labels=5,
        num_object_labels=11,
        num_attr_labels=7,
        visual_feat_dim=FEAT,
        max_position_embeddings=16,
        l_layers=2,
        r_layers=2,
        x_layers=2,
        visual_loss_normalizer=1 / 0.15,
    )
    model = LxmertForPreTraining(config).eval()
    for param in model.parameters():
        param.data.add_(0.1 * torch.randn_like(param))
    path = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(path)
    return path, model


def batch_of() -> Batch:
    """Texts and images of different lengths, as the corruptors leave them: words and regions masked, pairs mismatched."""
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (ROWS, WORDS))
    mask = torch.arange(WORDS) < torch.tensor([9, 8, 7, 5, 3])[:, None]
    targets = torch.where((torch.rand(ROWS, WORDS) < 0.4) & mask, ids, IGNORE)
    text = Stream(ids, mask, target={"ids": targets, "match": torch.tensor([1, 0, 1, 1, 0])})
    masked = torch.rand(ROWS, REGIONS) < 0.4
    extra = {
        "box": torch.rand(ROWS, REGIONS, 4),
        "obj": torch.randint(0, 11, (ROWS, REGIONS)),
        "obj_conf": torch.rand(ROWS, REGIONS),
        "attr": torch.randint(0, 7, (ROWS, REGIONS)),
        "attr_conf": torch.rand(ROWS, REGIONS),
    }
    target = {"masked": masked, "feat": torch.randn(ROWS, REGIONS, FEAT)}
    regions = Stream(torch.randn(ROWS, REGIONS, FEAT), None, extra, target)
    return Batch({"text": text, "regions": regions}, same=torch.arange(ROWS))


def inputs_of(batch: Batch, mask: Tensor | None = None) -> dict[str, Any]:
    text, regions = batch.stream("text"), batch.stream("regions")
    assert text.mask is not None
    return {
        "input_ids": text.data,
        "attention_mask": text.mask.long(),
        "visual_feats": regions.data,
        "visual_pos": regions.extra["box"],
        "visual_attention_mask": mask,
    }


def test_loaded_outputs_equal_theirs(theirs: tuple[Path, Any]) -> None:
    path, model = theirs
    ours, batch = folder.load(path).eval(), batch_of()
    mask = torch.arange(REGIONS) < torch.tensor([6, 6, 4, 2, 1])[:, None]
    regions = batch.stream("regions")
    padded = Stream(regions.data, mask, regions.extra, regions.target)
    for visual, stream in ((None, regions), (mask, padded)):
        streams = {"text": batch.stream("text"), "regions": stream}
        out = Outputs(ours, Batch(streams, same=batch.same), grad=False)
        with torch.no_grad():
            inputs = inputs_of(batch, None if visual is None else visual.long())
            found = model(**inputs)
            states = model.lxmert(**inputs)
            wanted = model.obj_predict_head(states.vision_output)
        seen = batch.stream("text").mask
        torch.testing.assert_close(
            ours.predict_words(out.word_hidden)[seen], found.prediction_logits[seen], atol=1e-5, rtol=0
        )
        torch.testing.assert_close(out.match, found.cross_relationship_score, atol=1e-5, rtol=0)
        torch.testing.assert_close(out.answer, found.question_answering_score, atol=1e-5, rtol=0)
        real = mask if visual is not None else torch.ones_like(mask)
        for kind, logits in wanted.items():
            got = ours.predict_regions(out.region_hidden, kind)
            torch.testing.assert_close(got[real], logits[real], atol=1e-5, rtol=0)


def test_the_loss_of_answers_equals_theirs(theirs: tuple[Path, Any]) -> None:
    path, model = theirs
    ours, batch, labels = folder.load(path).eval(), batch_of(), torch.tensor([3, 0, IGNORE, 4, 2])
    matched = {"text": replace(batch.stream("text"), target={}), "regions": batch.stream("regions")}
    out = Outputs(ours, Batch({**matched, "answer": Stream(labels)}, same=batch.same))
    term = Answer()(out)["answer"]
    wanted = model(**inputs_of(batch), ans=labels).loss
    torch.testing.assert_close(term.total / term.count, wanted, atol=1e-5, rtol=0)
    assert not missing(ours, [Answers])
    assert missing(Lxmert(**{**SIZES, "num_answers": 0}), [Answers]) == [Answers]


def test_losses_and_gradients_equal_theirs(theirs: tuple[Path, Any]) -> None:
    """Theirs is one sum of all losses. Their embeddings do not train row 0, which `padding_idx` excludes; ours do."""
    path, model = theirs
    ours, batch = folder.load(path).eval(), batch_of()
    out = Outputs(ours, batch)
    objectives = [
        MaskedLm(),
        Match(),
        RegionFeatures(divide_by="all"),
        RegionClass(which="obj"),
        RegionClass(which="attr"),
    ]
    total = torch.zeros(())
    for objective in objectives:
        (name,) = objective.LOSSES
        term = objective(out)[name]
        count = objective.counts(batch).get(name, len(batch))
        assert float(count) == pytest.approx(float(term.count))
        total = total + term.total / term.count
    text, regions = batch.stream("text"), batch.stream("regions")
    extra, masked = regions.extra, regions.target["masked"].float()
    model.zero_grad()
    wanted = model(
        **inputs_of(batch),
        labels=text.target["ids"],
        matched_label=text.target["match"],
        obj_labels={
            "obj": (extra["obj"], extra["obj_conf"]),
            "attr": (extra["attr"], extra["attr_conf"]),
            "feat": (regions.target["feat"], masked),
        },
    ).loss
    torch.testing.assert_close(total, wanted, atol=1e-5, rtol=1e-5)
    total.backward()
    wanted.backward()
    grads = dict(model.named_parameters())
    own = dict(ours.named_parameters())
    compared = 0
    for entry in layout.entries(ours.config, "pretraining"):
        if entry.optional or entry.ours.startswith("answer_head"):
            continue
        expected = torch.cat([grads[name].grad for name in entry.theirs])
        got = own[entry.ours].grad
        if entry.ours in ("words.words.weight", "words.positions.weight", "words.types.weight"):
            expected, got = expected[1:], got[1:]
        scale = float(expected.abs().max())
        assert torch.allclose(got, expected, atol=1e-5 * max(scale, 1), rtol=0), entry.ours
        compared += 1
    assert compared > 90


def test_export_and_our_folder_give_the_same_model(theirs: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers import LxmertForPreTraining

    path, model = theirs
    ours = folder.load(path).eval()
    ours.export(tmp_path / "exported")
    again = LxmertForPreTraining.from_pretrained(tmp_path / "exported").eval()
    folder.save(ours, tmp_path / "saved")
    saved = folder.load(tmp_path / "saved").eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    for name, value in ours.state_dict().items():
        assert torch.equal(value, saved.state_dict()[name]), name


def test_capabilities_and_a_control_without_cross_attention() -> None:
    torch.manual_seed(0)
    model = Lxmert(**SIZES).eval()
    assert missing(model, [FillsWords, Matches, Fuses, PredictsRegions]) == []
    batch, others = batch_of(), torch.arange(ROWS).roll(1)
    own = torch.arange(ROWS)
    for cross, equal in ((True, False), (False, True)):
        model = Lxmert(**{**SIZES, "cross_attention": cross}).eval()
        out = Outputs(model, batch, grad=False)
        swapped = out.paired({"text": own, "regions": others})
        assert torch.allclose(out.word_hidden, swapped.word_hidden) is equal
    with pytest.raises(ValueError, match="cross_attention"):
        model.export("nowhere")


def test_a_class_loss_on_masked_regions_alone() -> None:
    """By hand: mean over masked regions of confidence x cross entropy; a class of -1 has no loss."""
    torch.manual_seed(0)
    model, batch = Lxmert(**SIZES).eval(), batch_of()
    regions = batch.stream("regions")
    regions.extra["attr"][0] = -1  # type: ignore[index]
    out = Outputs(model, batch)
    with torch.no_grad():
        term = RegionClass(which="attr", regions="masked")(out)["region_attr"]
        logits = model.predict_regions(out.region_hidden, "attr").log_softmax(-1)
    total, num = 0.0, 0
    for row, at in regions.target["masked"].nonzero().tolist():
        num += 1
        label = int(regions.extra["attr"][row, at])
        if label >= 0:
            total -= float(regions.extra["attr_conf"][row, at] * logits[row, at, label])
    assert float(term.total) == pytest.approx(total, rel=1e-4)
    assert float(term.count) == num
