from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vlpipe.models.blocks.post_norm import CrossAttention
from vlpipe.models.generation.beam import beam
from vlpipe.models.generation.generate import sample
from vlpipe.models.generation.nucleus import from_shortlist, nucleus
from vlpipe.models.generation.steps import Decoding, Steps
from vlpipe.models.systems.image_text.blip.model import Blip
from vlpipe.models.tokenizer import Tokenizer

Make = Callable[..., Any]


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("absorbs", [False, True])
def test_cached_steps_are_the_whole_pass(
    make_blip: Make, make_batch: Make, monkeypatch: pytest.MonkeyPatch, absorbs: bool, repeats: int
) -> None:
    """absorbs: without keys and values of the images."""
    monkeypatch.setattr(CrossAttention, "absorbs", lambda *_: absorbs)
    blip, b = make_blip(), make_batch(3 * repeats)
    tokens = blip.encode_image(b.streams["image"].data[:3])
    ids = b.streams["text"].data.clone()
    ids[:, 0] = blip.config.dec
    whole = blip.decode_text(ids, tokens.repeat_interleave(repeats, 0))
    cache = blip.text.start(tokens, 10, repeats)
    assert (cache.context is not None, bool(cache.image)) == (absorbs, not absorbs)
    parts = [blip.text.step(ids[:, :4], cache)]
    parts += [blip.text.step(ids[:, t : t + 1], cache) for t in range(4, 10)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)


def test_greedy_is_the_argmax_of_repeated_whole_passes(make_blip: Make) -> None:
    blip, prompt, most = make_blip(), [20, 21], 8
    c = blip.config
    tokens = blip.encode_image(torch.randn(4, 3, 32, 32))
    for row, got in enumerate(sample(blip, tokens, max_length=most, min_length=2, prompt_ids=prompt)):
        ids = [c.dec, *prompt]
        while len(ids) - 3 < most:
            logits = blip.lm_logits(torch.tensor([ids]), torch.ones(1, len(ids)), tokens[row : row + 1])[
                0, -1
            ]
            logits[c.never + ([c.sep] if len(ids) - 3 < 2 else [])] = -torch.inf
            ids.append(int(logits.argmax()))
            if ids[-1] == c.sep:
                break
        assert got == [i for i in ids[3:] if i != c.sep]


def test_nucleus_is_the_smallest_set_and_inverse_cdf() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.3, 0.2]]))
    kept = {0.05: [1], 0.39: [1], 0.5: [1, 2], 0.75: [1, 2, 3], 1.0: [1, 2, 3, 0]}
    probs = [0.1, 0.4, 0.3, 0.2]
    for top_p, ids in kept.items():
        total, edge = sum(probs[i] for i in ids), 0.0
        for i in ids:  # just inside both edges of each token's interval
            for u in (edge / total + 1e-6, (edge + probs[i]) / total - 1e-6):
                assert nucleus(logits, top_p, torch.tensor([u], dtype=torch.float64)).item() == i
            edge += probs[i]


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0, 6.0, 40.0])
def test_buckets_give_the_token_of_the_whole_sort(spread: float, is_rounded: bool) -> None:
    """rounded: many tokens are equally likely, also at the ends of a bucket."""
    g = torch.Generator().manual_seed(4)
    logits = spread * torch.randn(48, 9000, generator=g)
    logits = (2 * logits).round() / 2 if is_rounded else logits
    draws = torch.rand(48, generator=g, dtype=torch.float64)
    probs, ids = logits.double().softmax(-1).sort(dim=-1, descending=True, stable=True)
    for top_p in (0.3, 0.9, 1.0):
        kept = torch.where(probs.cumsum(-1) - probs < top_p, probs, 0.0).cumsum(-1)
        at = torch.searchsorted(kept, draws[:, None] * kept[:, -1:], right=True)
        last = (probs.cumsum(-1) - probs < top_p).sum(-1, keepdim=True) - 1
        assert torch.equal(nucleus(logits, top_p, draws), ids.gather(1, torch.minimum(at, last))[:, 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_few_bits_and_no_rows(dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(20, 9000, generator=torch.Generator().manual_seed(0))).to(dtype)
    logits[:, 7] = -torch.inf
    draws = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(nucleus(logits, 0.9, draws), nucleus(logits.float(), 0.9, draws))
    assert nucleus(logits[:0], 0.9, draws[:0]).tolist() == []


@pytest.mark.parametrize("top_k", [None, 1, 5, 39, 40, 1000])
def test_nucleus_keeps_what_transformers_keeps(top_k: int | None) -> None:
    from transformers import TopKLogitsWarper, TopPLogitsWarper

    logits = 3 * torch.randn(50, 40)
    some = logits if top_k is None else TopKLogitsWarper(top_k)(None, logits)
    kept = TopPLogitsWarper(0.9)(None, some) > -torch.inf
    draws = torch.linspace(0, 1 - 1e-9, 4000, dtype=torch.float64)
    for row in range(50):
        drawn = nucleus(logits[row].expand(4000, -1), 0.9, draws, top_k)
        counts = drawn.bincount(minlength=40) / 4000
        wanted = torch.where(kept[row], logits[row].exp(), 0.0)
        torch.testing.assert_close(counts, wanted / wanted.sum(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("num", [64, 4096])
def test_a_guess_that_is_certain_is_the_nucleus(num: int) -> None:
    g = torch.Generator().manual_seed(5)
    spread = torch.linspace(0.1, 6.0, 60)[:, None]
    logits, draws = (
        spread * torch.randn(60, 9000, generator=g),
        torch.rand(60, generator=g, dtype=torch.float64),
    )
    token, is_sure = from_shortlist(logits, 0.9, draws, None, num)
    assert 0 < is_sure.sum() < 60
    assert torch.equal(token[is_sure], nucleus(logits, 0.9, draws)[is_sure])


WAYS = [
    Decoding(static_cache=True),
    Decoding(check_every=8),
    Decoding(static_cache=True, check_every=8, shortlist=4096),
    Decoding(shortlist=2),
    Decoding(static_cache=True, check_every=8, shortlist=16, backend="eager"),
    Decoding(static_cache=True, check_every=8, shortlist=16, backend="aot_eager"),
]


@pytest.mark.parametrize("decoding", WAYS, ids=str)
def test_each_way_of_decoding_writes_the_same_texts(make_blip: Make, decoding: Decoding) -> None:
    blip = make_blip()
    blip.lm_head.bias.data[blip.config.sep] += 2  # some end early
    with torch.inference_mode():
        steps = Steps(blip, decoding)
        for seed in (1, 2):  # of two batches, the second one with the steps of the first
            torch.manual_seed(seed)
            tokens = blip.encode_image(torch.randn(8, 3, 32, 32))
            for options in (
                {"top_p": 0.9, "min_length": 2, "max_length": 12},
                {"top_p": 0.9, "min_length": 2, "max_length": 12, "repetition_penalty": 1.3},
                {"top_p": 0.9, "top_k": 5, "max_length": 12},
                {"max_length": 12},
            ):
                wanted = sample(blip, tokens, generators=seeded(*range(8)), **options)
                assert sample(blip, tokens, generators=seeded(*range(8)), **options, steps=steps) == wanted
                assert len({len(text) for text in wanted}) > 1 or "top_p" not in options


def test_gpt_writes_the_same_texts_with_fixed_shapes() -> None:
    from vlpipe.models.generation.alone import Alone
    from vlpipe.models.systems.text.gpt import Gpt

    torch.manual_seed(0)
    sizes = {"width": 32, "layers": 2, "heads": 2, "max_text_length": 20}
    gpt = Alone(Gpt(vocab_size=40, start=1, end=2, init_std=0.3, **sizes).eval())
    images = torch.zeros(4, 1)
    wanted = sample(gpt, images, generators=seeded(*range(4)), top_p=0.9, max_length=12)
    fixed = Steps(gpt, Decoding(static_cache=True))
    assert sample(gpt, images, generators=seeded(*range(4)), top_p=0.9, max_length=12, steps=fixed) == wanted


def test_only_fixed_shapes_are_compiled(make_blip: Make) -> None:
    with pytest.raises(ValueError, match="set static_cache"):
        Steps(make_blip(), Decoding(backend="eager"))


def test_a_compiled_step_refuses_a_batch_of_another_shape(make_blip: Make) -> None:
    blip = make_blip()
    steps = Steps(blip, Decoding(static_cache=True, backend="eager"))
    for num in (4, 1):
        tokens = blip.encode_image(torch.randn(num, 3, 32, 32))
        if num == 4:
            steps.start(tokens, [], 8)
        else:
            with pytest.raises(ValueError, match="a batch of another shape"):
                steps.start(tokens, [], 8)


def test_equal_tokens_are_taken_by_id() -> None:
    draws = torch.tensor([0.0, 0.3, 0.6, 0.9], dtype=torch.float64)
    assert nucleus(torch.zeros(4, 4), 1.0, draws).tolist() == [0, 1, 2, 3]
    assert nucleus(torch.zeros(1, 4), 1.0, torch.tensor([1 - 2**-53], dtype=torch.float64)).tolist() == [3]


def test_a_rows_text_does_not_depend_on_the_rows_beside_it(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(6, 3, 32, 32))
    options = {"top_p": 0.9, "min_length": 2, "max_length": 12}
    together = sample(blip, tokens, generators=seeded(*range(6)), **options)
    for row in range(6):
        beside = tokens[torch.tensor([(row + k) % 6 for k in (0, 1, 1, 3, 1, 2)])]
        assert sample(blip, beside, generators=seeded(row, 9, 9, 8, 7, 9), **options)[0] == together[row]
    assert len({tuple(t) for t in together}) > 1


def test_same_seed_same_text_other_seed_other_text(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(1, 3, 32, 32))
    texts = [sample(blip, tokens, generators=seeded(s), top_p=0.95, max_length=15)[0] for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_generator_is_left_alike_however_long_the_text(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(2, 3, 32, 32))
    blip.lm_head.bias.data[blip.config.sep] = 50  # ends at once
    short, forced = seeded(1, 1), seeded(1, 1)
    assert sample(blip, tokens, generators=short, top_p=0.9, max_length=9) == [[], []]
    sample(blip, tokens, generators=forced, top_p=0.9, min_length=9, max_length=9)
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(short, forced, strict=True))


@pytest.mark.parametrize(("min_length", "max_length"), [(0, 1), (3, 3), (2, 6), (7, 12)])
def test_lengths_count_new_tokens(make_blip: Make, min_length: int, max_length: int) -> None:
    blip = make_blip()
    blip.lm_head.bias.data[blip.config.sep] += 2
    tokens = blip.encode_image(torch.randn(8, 3, 32, 32))
    options = {"min_length": min_length, "max_length": max_length, "prompt_ids": [20, 21, 22]}
    for texts in (
        sample(blip, tokens, generators=seeded(*range(8)), top_p=0.95, **options),
        sample(blip, tokens, **options),
        beam(blip, tokens, **options),
    ):
        assert all(min_length <= len(t) <= max_length for t in texts)
        assert not {blip.config.sep, blip.config.pad, blip.config.dec} & {i for t in texts for i in t}


def test_repetition_penalty_is_that_of_transformers(make_blip: Make) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    blip = make_blip()
    c, tokens = blip.config, blip.encode_image(torch.randn(1, 3, 32, 32))
    ids = [c.dec, 20]
    for _ in range(6):
        logits = blip.lm_logits(torch.tensor([ids]), torch.ones(1, len(ids)), tokens)[:, -1]
        logits = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([ids]), logits)
        logits[:, [*c.never, c.sep]] = -torch.inf
        ids.append(int(logits.argmax()))
    got = sample(blip, tokens, min_length=6, max_length=6, prompt_ids=[20], repetition_penalty=1.7)
    assert got == [ids[2:]]


def test_the_image_encoder_is_not_needed_again(make_blip: Make) -> None:
    blip = make_blip()
    tokens = blip.encode_image(torch.randn(2, 3, 32, 32))
    want = sample(blip, tokens, max_length=5)
    del blip.vision
    assert sample(blip, tokens, max_length=5) == want


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"top_p": 0.9}, r"one generator for each of the 2 rows, got none"),
        ({"top_p": 0.9, "generators": seeded(1)}, r"one generator for each of the 2 rows, got 1"),
        ({"top_p": 1.5, "generators": seeded(1, 2)}, r"top_p must be above 0 and at most 1, got 1.5"),
        (
            {"min_length": 5, "max_length": 4},
            r"min_length must be from 0 to max_length, .* got min_length 5, max_length 4",
        ),
        (
            {"max_length": 22, "prompt_ids": [9, 9]},
            r"max_length must be at most 21 \(max_text_length 24 .* got 22",
        ),
    ],
)
def test_impossible_requests_are_explained(make_blip: Make, options: dict[str, Any], wanted: str) -> None:
    blip: Blip = make_blip()
    with pytest.raises(ValueError, match=wanted):
        sample(blip, blip.encode_image(torch.randn(2, 3, 32, 32)), **options)


def test_unknown_and_mask_are_never_generated(make_blip: Make, tokenizer: Tokenizer) -> None:
    blip = make_blip()
    special = [tokenizer.unk, tokenizer.mask, tokenizer.pad, tokenizer.cls, tokenizer.dec, tokenizer.enc]
    blip.lm_head.bias.data[special] = 50  # by far the likeliest
    tokens = blip.encode_image(torch.randn(8, 3, 32, 32))
    options = {"min_length": 3, "max_length": 9}
    for texts in (
        sample(blip, tokens, generators=seeded(*range(8)), top_p=1.0, **options),
        sample(blip, tokens, repetition_penalty=1.3, **options),
        beam(blip, tokens, **options),
    ):
        assert not {*special} & {i for t in texts for i in t}
        assert all(tokenizer.decode(t) for t in texts)


def test_a_folder_of_an_older_version_takes_them_from_its_tokenizer(
    make_blip: Make, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    blip = make_blip()
    blip.save(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    for name in ("unk", "mask"):
        del fields[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert Blip.load(tmp_path).config.unk is None  # nothing says what it is
    tokenizer.save(tmp_path / "tokenizer")
    assert Blip.load(tmp_path).config == blip.config


def test_a_decoded_text_has_no_special_token(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode(["a red \u4e16 circle"], 12)
    assert tokenizer.decode([*ids[0].tolist(), tokenizer.mask]) == "a red circle"
