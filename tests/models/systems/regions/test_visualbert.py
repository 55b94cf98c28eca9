"""VisualBERT against transformers' `VisualBertForPreTraining`: the same weights give the same outputs, losses and gradients.

Tolerances: outputs and losses 1e-5 absolute, gradients 1e-5 of their largest value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.parity import noisy, through_a_folder
from vlpipe.models.interface.batch import IGNORE, Batch, Stream
from vlpipe.models.interface.capabilities import FillsWords, Fuses, Matches, PredictsRegions, missing
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.layouts.regions import visualbert as layout
from vlpipe.models.objectives.masked_lm import MaskedLm
from vlpipe.models.objectives.match import Match
from vlpipe.models.systems.regions.visualbert import VisualBert

ROWS, WORDS, REGIONS, FEAT = 5, 9, 6, 12
SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "feat_dim": FEAT,
    "width": 32,
    "layers": 2,
    "heads": 4,
    "dropout": 0.0,
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[VisualBert, Any]:
    """Ours of their folder, and theirs, in eval mode; the visual tables differ from those of words."""
    from transformers import VisualBertConfig, VisualBertForPreTraining

    torch.manual_seed(0)
    config = VisualBertConfig(
        vocab_size=60,
        hidden_size=32,
        intermediate_size=72,
        num_attention_heads=4,
        num_hidden_layers=2,
        visual_embedding_dim=FEAT,
        max_position_embeddings=16,
        pad_token_id=0,
    )
    theirs = noisy(VisualBertForPreTraining(config), but="nothing")
    return through_a_folder(theirs, tmp_path_factory.mktemp("theirs")), theirs


def batch_of() -> Batch:
    """Pairs of captions and images of different lengths; words masked, second captions replaced."""
    torch.manual_seed(1)
    ids = torch.randint(5, 60, (ROWS, WORDS))
    mask = torch.arange(WORDS) < torch.tensor([9, 8, 7, 5, 5])[:, None]
    targets = torch.where((torch.rand(ROWS, WORDS) < 0.4) & mask, ids, IGNORE)
    segment = (torch.arange(WORDS) >= torch.tensor([4, 3, 5, 2, 3])[:, None]).long()
    target = {"ids": targets, "match": torch.tensor([1, 0, 1, 1, 0])}
    seen = torch.arange(REGIONS) < torch.tensor([6, 6, 4, 2, 1])[:, None]
    regions = Stream(torch.randn(ROWS, REGIONS, FEAT), seen)
    text = Stream(ids, mask, {"segment": segment}, target)
    return Batch({"text": text, "regions": regions}, same=torch.arange(ROWS))


def theirs_of(model: Any, batch: Batch) -> Any:
    text, regions = batch.stream("text"), batch.stream("regions")
    assert text.mask is not None
    assert regions.mask is not None
    labels = torch.cat([text.target["ids"], torch.full((ROWS, REGIONS), IGNORE)], 1)
    return model(
        input_ids=text.data,
        attention_mask=text.mask.long(),
        token_type_ids=text.extra["segment"],
        visual_embeds=regions.data,
        visual_attention_mask=regions.mask.long(),
        labels=labels,
        sentence_image_labels=1 - text.target["match"],
        output_hidden_states=True,
    )


def test_outputs_losses_and_gradients_equal_theirs(both: tuple[VisualBert, Any]) -> None:
    ours, theirs = both
    batch = batch_of()
    out, wanted = Outputs(ours, batch), theirs_of(theirs, batch)
    text, regions = batch.stream("text"), batch.stream("regions")
    logits = ours.predict_words(out.word_hidden)
    torch.testing.assert_close(
        logits[text.mask], wanted.prediction_logits[:, :WORDS][text.mask], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(out.match, wanted.seq_relationship_logits.flip(1), atol=1e-5, rtol=0)
    states = wanted.hidden_states[-1][:, WORDS:]
    torch.testing.assert_close(out.fused["regions"][regions.mask], states[regions.mask], atol=1e-5, rtol=0)
    total = torch.zeros(())
    for objective in (MaskedLm(), Match()):
        term = objective(out)[objective.LOSSES[0]]
        total = total + term.total / term.count
    torch.testing.assert_close(total, wanted.loss, atol=1e-5, rtol=1e-5)
    theirs.zero_grad()
    total.backward()
    wanted.loss.backward()
    grads = dict(theirs.named_parameters(remove_duplicate=False))
    own = dict(ours.named_parameters())
    compared = 0
    for entry in layout.entries(ours.config, "pretraining"):
        if entry.ours not in own:  # the second name of the tied word embedding
            continue
        expected, got = torch.cat([grads[name].grad for name in entry.theirs]), own[entry.ours].grad
        assert got is not None, entry.ours
        if entry.ours.startswith("match_head"):
            expected = expected.flip(0)
        if entry.ours == "words.words.weight":
            expected, got = expected[1:], got[1:]  # their padding has no gradient as an input
        scale = max(float(expected.abs().max()), 1)
        assert torch.allclose(got, expected, atol=1e-5 * scale, rtol=0), entry.ours
        compared += 1
    assert compared == 5 + 2 + 2 + 2 * 12 + 2 + 2 + 2 + 1 + 2


def test_export_gives_their_weights_back(both: tuple[VisualBert, Any], tmp_path: Path) -> None:
    from transformers import VisualBertForPreTraining

    ours, theirs = both
    ours.export(tmp_path)
    again = VisualBertForPreTraining.from_pretrained(tmp_path)
    for name, value in theirs.state_dict().items():
        if name != "cls.predictions.bias":
            assert torch.equal(value, again.state_dict()[name]), name


def test_visual_tables_start_as_copies_of_those_of_words() -> None:
    model = VisualBert(**SIZES, max_text_length=16)
    assert model.words.types is not None
    assert torch.equal(model.region_types.weight, model.words.types.weight)
    assert torch.equal(model.region_positions.weight, model.words.positions.weight)
    assert model.region_types.weight is not model.words.types.weight


def test_words_see_regions_but_not_in_the_control() -> None:
    assert missing(VisualBert(**SIZES), [FillsWords, Matches, Fuses]) == []
    assert missing(VisualBert(**SIZES), [PredictsRegions]) == [PredictsRegions]
    own, others = torch.arange(ROWS), torch.arange(ROWS).roll(1)
    for image in (True, False):
        out = Outputs(noisy(VisualBert(**SIZES, image=image), but="nothing"), batch_of(), grad=False)
        swapped = out.paired({"text": own, "regions": others})
        assert torch.allclose(out.word_hidden, swapped.word_hidden) is not image
    with pytest.raises(ValueError, match="whose words see no region"):
        VisualBert(**SIZES, image=False).export("nowhere")


def test_a_checkpoint_that_bypasses_the_transformer_is_refused() -> None:
    from transformers import VisualBertConfig

    with pytest.raises(ValueError, match="bypass the transformer"):
        layout.read(VisualBertConfig(bypass_transformer=True))
