"""GPT against transformers' OpenAIGPTLMHeadModel: outputs, loss and gradients to 1e-5, folders in both directions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

from tests.models.parity import LENGTHS, TOLERANCE, noisy, outputs, texts, through_a_folder
from vlpipe.models.generation.alone import Alone
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import Stream
from vlpipe.models.objectives.lm import Lm
from vlpipe.models.systems.text.gpt import Gpt

TINY: dict[str, Any] = {
    "vocab_size": 37,
    "n_embd": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_positions": 16,
    "initializer_range": 0.2,
}


@pytest.fixture
def theirs() -> OpenAIGPTLMHeadModel:
    torch.manual_seed(0)
    return noisy(OpenAIGPTLMHeadModel(OpenAIGPTConfig(**TINY)))


@pytest.fixture
def ours(theirs: OpenAIGPTLMHeadModel, tmp_path: Path) -> Gpt:
    model = through_a_folder(theirs, tmp_path / "theirs")
    assert isinstance(model, Gpt)
    return model


def test_outputs_loss_and_gradients_are_those_of_transformers(
    theirs: OpenAIGPTLMHeadModel, ours: Gpt
) -> None:
    ids, mask = texts(37, 9)
    wanted = theirs(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, -100))
    out = outputs(ours, text=Stream(ids, mask))
    torch.testing.assert_close(ours.predict(out.decoder_hidden)[mask], wanted.logits[mask], **TOLERANCE)
    objective = Lm()
    objective.bind(ours)  # its smoothing is that of the model, and GPT has none
    term = objective(out)["lm"]
    assert int(term.count) == int((LENGTHS - 1).sum())
    torch.testing.assert_close(term.total / term.count, wanted.loss, **TOLERANCE)
    (term.total / term.count).backward()
    wanted.loss.backward()
    pairs = [
        (ours.words.words.weight.grad, theirs.transformer.tokens_embed.weight.grad),
        (ours.layers[0].up.weight.grad.t(), theirs.transformer.h[0].mlp.c_fc.weight.grad),
        (ours.layers[1].attention.qkv.weight.grad.t(), theirs.transformer.h[1].attn.c_attn.weight.grad),
    ]
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, **TOLERANCE)


def test_a_folder_goes_back_and_forth(theirs: OpenAIGPTLMHeadModel, ours: Gpt, tmp_path: Path) -> None:
    ours.export(tmp_path / "again")
    again = OpenAIGPTLMHeadModel.from_pretrained(tmp_path / "again").state_dict()
    for name, value in theirs.state_dict().items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("sizes", [[1] * 10, [4, 1, 3, 2]])
def test_steps_give_what_the_whole_text_gives(ours: Gpt, sizes: list[int]) -> None:
    ids, _ = texts(37, 9)
    whole = outputs(ours, text=Stream(ids, torch.ones_like(ids, dtype=torch.bool))).decoder_hidden
    cache, parts = ours.start_alone(5, 10), []
    for part in ids.split(sizes, dim=1):
        parts.append(ours.step_text(part, cache))
    torch.testing.assert_close(torch.cat(parts, 1), whole, **TOLERANCE)


def test_it_writes_as_transformers_does(theirs: OpenAIGPTLMHeadModel, ours: Gpt) -> None:
    prompt = torch.tensor([[0, 5, 7], [0, 5, 7]])
    wanted = theirs.generate(prompt, max_new_tokens=8, do_sample=False, eos_token_id=0, pad_token_id=0)[
        0, 3:
    ].tolist()
    found = sample(Alone(ours), torch.zeros(2, 1), max_length=8, prompt_ids=[5, 7])
    assert found[0] == found[1] == (wanted[: wanted.index(0)] if 0 in wanted else wanted)
    assert len(beam(Alone(ours), torch.zeros(2, 1), num_beams=3, max_length=6)) == 2
