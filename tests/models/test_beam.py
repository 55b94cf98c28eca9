from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from vlpipe.models.generation.beam import beam, search
from vlpipe.models.generation.generate import sample
from vlpipe.models.systems.image_text.blip.model import Blip

Make = Callable[..., Any]


def exhaustive(blip: Blip, tokens: torch.Tensor, max_length: int, length_penalty: float) -> list[int]:
    """The best of all texts up to `max_length`, each scored by a whole pass."""
    c, words = blip.config, [1, 4]
    c_never = c.never
    best, best_score = [], -torch.inf
    for length in range(max_length + 1):
        for text in itertools.product(words, repeat=length):
            ids = [c.dec, *text, c.sep][: max_length + 1]
            logits = blip.lm_logits(torch.tensor([ids]), torch.ones(1, len(ids)), tokens)[0]
            logits[:, c_never] = -torch.inf
            each = logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]
            score = each.sum().item() / (len(ids) - 1) ** length_penalty
            if score > best_score:
                best, best_score = list(text), score
    return best


@pytest.mark.slow
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_wide_beams_find_the_best_text_of_all(make_blip: Make, length_penalty: float) -> None:
    """Two words and [SEP]: 16 beams hold every text of 4 words."""
    blip = make_blip(vocab_size=7, pad=0, cls=2, sep=3, dec=5, enc=6, unk=None, mask=None)
    for image in blip.encode_image(torch.randn(4, 3, 32, 32)):
        tokens = image[None]
        got = beam(blip, tokens, num_beams=16, max_length=4, length_penalty=length_penalty)
        assert got == [exhaustive(blip, tokens, 4, length_penalty)]


def test_one_beam_is_greedy(make_blip: Make) -> None:
    blip = make_blip()
    blip.lm_head.bias.data[blip.config.sep] += 0.5
    tokens = blip.encode_image(torch.randn(6, 3, 32, 32))
    assert beam(blip, tokens, num_beams=1, max_length=9) == sample(blip, tokens, max_length=9)


def test_each_image_has_its_own_beams(make_blip: Make) -> None:
    blip = make_blip()
    blip.lm_head.bias.data[blip.config.sep] += 0.5
    tokens = blip.encode_image(torch.randn(6, 3, 32, 32))
    together = beam(blip, tokens, num_beams=3, min_length=1, max_length=9)
    alone = [beam(blip, t[None], num_beams=3, min_length=1, max_length=9)[0] for t in tokens]
    assert together == alone
    assert len({len(t) for t in together}) > 1


@pytest.mark.parametrize("num_beams", [1, 3])
def test_each_image_may_have_a_prompt_of_its_own(make_blip: Make, num_beams: int) -> None:
    blip = make_blip()
    blip.lm_head.bias.data[blip.config.sep] += 0.5
    tokens = blip.encode_image(torch.randn(5, 3, 32, 32))
    prompts = torch.tensor([[7, 8], [9, 7], [8, 8], [7, 8], [6, 9]])
    together = search(blip, tokens, num_beams=num_beams, max_length=6, prompt_ids=prompts)
    alone = [
        search(blip, image[None], num_beams=num_beams, max_length=6, prompt_ids=prompt.tolist())[0]
        for image, prompt in zip(tokens, prompts, strict=True)
    ]
    assert together == alone
    assert together != search(blip, tokens, num_beams=num_beams, max_length=6)
    with pytest.raises(ValueError, match="and 2 prompt tokens"):
        search(blip, tokens, num_beams=num_beams, max_length=1000, prompt_ids=prompts)


def test_a_penalty_counts_the_tokens_of_each_prompt(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(4, 3, 32, 32))
    prompts = torch.tensor([[7], [8], [9], [7]])
    options = {"max_length": 6, "repetition_penalty": 1.5}
    together = sample(blip, tokens, prompt_ids=prompts, **options)
    assert together == [
        sample(blip, image[None], prompt_ids=prompt.tolist(), **options)[0]
        for image, prompt in zip(tokens, prompts, strict=True)
    ]
