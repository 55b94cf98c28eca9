"""Language models of transformers inside of ours: the same values, and what stands between the words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from tests.models.parity import TOLERANCE, outputs, texts
from vlpipe.models import folder
from vlpipe.models.blocks.frozen.language_model import DECODERS, LanguageModel, inserted
from vlpipe.models.generation.alone import Alone
from vlpipe.models.generation.generate import sample
from vlpipe.models.interface.batch import Stream
from vlpipe.models.weightless import weightless

WORDS = 40
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "opt": {
        "vocab_size": WORDS,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 32,
    },
    "t5": {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
}


def config(kind: str) -> dict[str, Any]:
    return {"model_type": kind, "bos_token_id": 1, "eos_token_id": 2, **OTHERS.get(kind, SIZES)}


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders_equal_transformers(kind: str, tmp_path: Path) -> None:
    """Logits of a folder of theirs, with padding on the right; folders go both ways."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config(kind))).eval()
    reference.save_pretrained(tmp_path / "theirs")
    model = folder.load(tmp_path / "theirs").eval()
    ids, mask = texts(WORDS, 2)
    found = model.predict(outputs(model, text=Stream(ids, mask)).decoder_hidden)
    wanted = reference(input_ids=ids, attention_mask=mask.long()).logits
    torch.testing.assert_close(found[mask], wanted[mask], **TOLERANCE)
    model.export(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, value in reference.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    folder.save(model, tmp_path / "saved")
    saved = folder.load(tmp_path / "saved").eval()
    with torch.no_grad():
        one, two = (sample(Alone(m), torch.zeros(3, 1), max_length=6) for m in (model, saved))
    assert one == two


def test_an_encoder_decoder_reads_the_start_of_a_text(tmp_path: Path) -> None:
    torch.manual_seed(0)
    reference = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**config("t5"))).eval()
    reference.save_pretrained(tmp_path)
    model = folder.load(tmp_path).eval()
    (ids, mask), (prefix, prefix_mask) = texts(WORDS, 2), texts(WORDS, 3)
    text = Stream(ids, mask, {"prefix": prefix, "prefix_mask": prefix_mask})
    found = model.predict(outputs(model, text=text).decoder_hidden)
    wanted = reference(input_ids=prefix, attention_mask=prefix_mask.long(), decoder_input_ids=ids).logits
    torch.testing.assert_close(found[mask], wanted[mask], **TOLERANCE)
    found = model.predict(outputs(model, text=Stream(ids, mask)).decoder_hidden)
    wanted = reference(input_ids=torch.full((5, 1), 2), decoder_input_ids=ids).logits
    torch.testing.assert_close(found[mask], wanted[mask], **TOLERANCE)
    with torch.no_grad():
        first = reference(input_ids=torch.tensor([[2]]), decoder_input_ids=torch.tensor([[0]])).logits
        assert sample(Alone(model), torch.zeros(2, 1), max_length=1) == [[int(first.argmax())]] * 2


@pytest.mark.parametrize("kind", ["opt", "llama", "t5"])
def test_it_is_planned_without_weights(kind: str) -> None:
    with weightless():
        net = LanguageModel(config(kind), WORDS, 2)
    assert all(p.is_meta for p in net.parameters())


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_type must be one of gpt2, .*, got 'bert'"):
        LanguageModel({"model_type": "bert"}, WORDS, 2)


def by_hand(words: Tensor, image: Tensor, count: int, at: int) -> Tensor:
    return torch.cat([words[:at], image[:count], words[at:]])


def test_images_of_any_length_are_put_before_any_word() -> None:
    words, image = torch.randn(4, 6, 3), torch.randn(4, 5, 3)
    counts, at = torch.tensor([5, 2, 0, 3]), torch.tensor([1, 0, 3, 5])
    found, places = inserted(words, image, counts, at)
    assert found.shape == (4, 11, 3)
    for b in range(4):
        wanted = by_hand(words[b], image[b], int(counts[b]), int(at[b]))
        assert torch.equal(found[b, : len(wanted)], wanted)
        for t in range(5):  # the id after word t is predicted just before where it stands
            assert torch.equal(wanted[places[b, t] + 1], words[b, t + 1])
        assert places[b, 5] == len(wanted) - 1


def test_one_place_for_all_rows_is_the_same_as_places_of_their_own() -> None:
    torch.manual_seed(0)
    net = LanguageModel(config("llama"), WORDS, 2).eval()
    ids, image = torch.randint(3, WORDS, (4, 6)), torch.randn(4, 5, 16)
    for at in (0, 1, 2, 5):
        one = net.hidden(ids, image, at)
        two = net.hidden_between(ids, image, torch.full((4,), 5), torch.full((4,), at))
        torch.testing.assert_close(one, two, **TOLERANCE)
