"""What corruptors change, what they record, and that their generators alone decide it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.stages.loading.corruptors.mask_frames import MaskFrames
from vlpipe.stages.loading.corruptors.mask_patches import MaskPatches
from vlpipe.stages.loading.corruptors.mask_text import MaskText
from vlpipe.stages.loading.corruptors.mismatch import Mismatch
from vlpipe.stages.loading.makers.base import IGNORE, Maker, Sample
from vlpipe.stages.loading.makers.text import Text
from vlpipe.stages.loading.makers.videos.windows import LENGTHS
from vlpipe.stages.loading.rows import Row

WORDS = ["circle", "triangle", "yellow", "elephants", "running", "a", "of", "rhinoceroses", "hippopotamus"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """So few tokens that long words are several."""
    return Tokenizer.train([" ".join(WORDS[:3] * 5 + WORDS)], 80)


@pytest.fixture(scope="module")
def makers(tokenizer: Tokenizer) -> dict[str, Maker]:
    return {"text": Text(tokenizer=tokenizer, max_length=60)}


@pytest.fixture(scope="module")
def samples_of(makers: dict[str, Maker]) -> Callable[[list[str]], list[Sample]]:
    def make(texts: list[str]) -> list[Sample]:
        return [{"text": makers["text"](None, text, np.random.default_rng(0))} for text in texts]  # type: ignore[arg-type]

    return make


def random_texts(num: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 9))) for _ in range(num)]


def seeded(seed: int) -> Callable[[int], np.random.Generator]:
    return lambda k: np.random.default_rng((seed, k))


def within(found: int, num: int, rate: float, extra: float = 0.0) -> bool:
    """Whether `found` of `num` is within 4 standard deviations of the rate, `extra` more expected."""
    return abs(found - num * rate - extra) < 4 * math.sqrt(num * rate * (1 - rate) + extra)


def test_rates_of_masked_tokens(
    tokenizer: Tokenizer, makers: Any, samples_of: Callable[[list[str]], list[Sample]]
) -> None:
    """15 % of the tokens, and where that is none one more; of these 80 % [MASK], 10 % random, 10 % as they were."""
    before = samples_of(random_texts(3000))
    after = MaskText()(samples_of(random_texts(3000)), seeded(1), makers)
    num = forced = chosen = masked = same = 0
    for old, new in zip(before, after, strict=True):
        ids, target, word = new["text"]["data"], new["text"]["target/ids"], old["text"]["words"] >= 0
        at = target != IGNORE
        assert at.any()
        assert not at[~word].any()
        assert np.array_equal(target[at], old["text"]["data"][at])
        assert np.array_equal(ids[~at], old["text"]["data"][~at])
        assert set(ids[at]) <= {tokenizer.mask, *tokenizer.plain_ids, tokenizer.unk}
        num, forced = num + word.sum(), forced + 0.85 ** word.sum()
        chosen, masked = chosen + at.sum(), masked + (ids[at] == tokenizer.mask).sum()
        same += (ids[at] == target[at]).sum()
    assert within(chosen, num, 0.15, forced)
    assert within(masked, chosen, 0.8)
    assert within(same, chosen, 0.1 + 0.1 / len(tokenizer.plain_ids))


def test_without_a_least_number_the_rate_is_that_of_each_token(
    makers: Any, samples_of: Callable[[list[str]], list[Sample]]
) -> None:
    num = chosen = none = whole = 0
    corruptor = MaskText(at_least_one=False)
    for sample in corruptor(samples_of(random_texts(1500)), seeded(1), makers):
        at, words = sample["text"]["target/ids"] != IGNORE, sample["text"]["words"] >= 0
        num, chosen = num + words.sum(), chosen + at.sum()
        none, whole = none + (not at.any()), whole + 0.85 ** words.sum()
    assert within(chosen, num, 0.15)
    assert within(none, 1500, whole / 1500)


@pytest.mark.slow
def test_words_are_masked_whole(makers: Any, samples_of: Callable[[list[str]], list[Sample]]) -> None:
    assert samples_of(["hippopotamus"])[0]["text"]["words"].tolist().count(0) > 1  # it is several tokens
    num = chosen = forced = 0
    for sample in MaskText(whole_words=True)(samples_of(random_texts(3000)), seeded(2), makers):
        at, words = sample["text"]["target/ids"] != IGNORE, sample["text"]["words"]
        names = set(words[words >= 0])
        picked = set(words[at])
        assert picked
        assert np.array_equal(at, np.isin(words, list(picked)))
        num, chosen, forced = num + len(names), chosen + len(picked), forced + 0.85 ** len(names)
    assert within(chosen, num, 0.15, forced)


def test_split_decides_what_a_chosen_token_becomes(
    tokenizer: Tokenizer, makers: Any, samples_of: Callable[[list[str]], list[Sample]]
) -> None:
    texts = random_texts(50)
    for split, mask in (((1.0, 0.0), True), ((0.0, 0.0), False)):
        for old, new in zip(
            samples_of(texts), MaskText(split=split)(samples_of(texts), seeded(3), makers), strict=True
        ):
            at = new["text"]["target/ids"] != IGNORE
            wanted = tokenizer.mask if mask else old["text"]["data"][at]
            assert (new["text"]["data"][at] == wanted).all()


def test_a_text_without_words_has_nothing_to_mask(
    makers: Any, samples_of: Callable[[list[str]], list[Sample]]
) -> None:
    (sample,) = MaskText()(samples_of([""]), seeded(0), makers)
    assert (sample["text"]["target/ids"] == IGNORE).all()


def matches(corruptor: Mismatch, samples: list[Sample], makers: Any, seed: int = 0) -> list[int]:
    """Labels; checks that each says whether the text is the sample's own, and that replaced ones are others'."""
    own = [sample["text"]["data"] for sample in samples]
    labels = []
    for k, sample in enumerate(corruptor(samples, seeded(seed), makers)):
        labels.append(int(sample["text"]["target/match"]))
        assert np.array_equal(sample["text"]["data"], own[k]) == bool(labels[k])
        assert any(np.array_equal(sample["text"]["data"], other) for other in own)
    return labels


@pytest.mark.parametrize("num", [2, 7, 64])
def test_half_of_a_batch_is_mismatched(
    makers: Any, samples_of: Callable[[list[str]], list[Sample]], num: int
) -> None:
    texts = [" ".join(WORDS[i % 7] for i in (k // 49, k // 7, k)) for k in range(num)]
    found = [matches(Mismatch(law="half"), samples_of(texts), makers, seed) for seed in range(20)]
    assert {labels.count(0) for labels in found} == {num // 2}
    assert len({tuple(labels) for labels in found}) > 1


def test_each_is_mismatched_at_its_rate(makers: Any, samples_of: Callable[[list[str]], list[Sample]]) -> None:
    texts = random_texts(500)
    for rate in (0.5, 0.2):
        assert within(matches(Mismatch(rate=rate), samples_of(texts), makers).count(0), 500, rate)


def test_equal_texts_are_no_mismatch(makers: Any, samples_of: Callable[[list[str]], list[Sample]]) -> None:
    assert matches(Mismatch(rate=1.0), samples_of(["a circle"] * 5), makers) == [1] * 5
    assert matches(Mismatch(law="half"), samples_of(["a circle"]), makers) == [1]
    mostly = samples_of(["a circle"] * 9 + ["yellow"])
    assert matches(Mismatch(rate=1.0), mostly, makers) == [0] * 10


def test_texts_of_one_picture_are_no_mismatch(tokenizer: Tokenizer) -> None:
    """An image with several captions occurs several times in a batch; the maker of any stream says which row it is."""
    maker = Text(tokenizer=tokenizer)
    texts = ["a circle", "a triangle", "yellow"]
    for numbers, wanted in (([7, 7, 7], [1, 1, 1]), ([7, 7, 8], [0, 0, 0])):
        rows = [
            Row(f"row{k}", number, [text], {})
            for k, (number, text) in enumerate(zip(numbers, texts, strict=True))
        ]
        samples = [{"text": maker(one, one.texts[0], np.random.default_rng(0))} for one in rows]
        assert matches(Mismatch(rate=1.0), samples, {"text": maker}) == wanted
        if numbers == [7, 7, 8]:
            assert np.array_equal(
                samples[0]["text"]["data"], samples[1]["text"]["data"]
            )  # both have the third's
        images = [
            {
                "image": {"data": np.full((3, 8, 8), k, np.float32)},
                "text": maker(one, one.texts[0], np.random.default_rng(0)),
            }
            for k, one in enumerate(rows)
        ]
        found = Mismatch(stream="image", rate=1.0)(images, seeded(0), {"text": maker, "image": Maker()})
        assert [int(sample["image"]["target/match"]) for sample in found] == wanted


@pytest.mark.parametrize("stream", ["text", "image"])
def test_texts_that_differ_in_case_or_spaces_are_no_mismatch(stream: str) -> None:
    cased = Text(
        tokenizer=Tokenizer.train(["A circle", "a Circle", "a  circle", "yellow"] * 3, 60, cased=True)
    )

    def samples_of(*texts: str) -> list[Sample]:
        return [
            {
                "text": cased(Row(f"row{k}", k, [text], {}), text, np.random.default_rng(0)),
                "image": {"data": np.full((3, 8, 8), k, np.float32)},
            }
            for k, text in enumerate(texts)
        ]

    assert not np.array_equal(*(sample["text"]["data"] for sample in samples_of("A circle", "a Circle")))
    makers = {"text": cased, "image": Maker()}
    for texts, wanted in ((("A circle", "a Circle", "a  circle"), 1), (("A circle", "yellow"), 0)):
        found = Mismatch(stream=stream, rate=1.0)(samples_of(*texts), seeded(0), makers)
        assert [int(sample[stream]["target/match"]) for sample in found] == [wanted] * len(texts)


def test_kept_and_masked_patches_are_all_patches() -> None:
    samples: list[Sample] = [{"image": {"data": np.zeros((3, 32, 48), np.float32)}} for _ in range(200)]
    hidden = np.zeros(24)
    for sample in MaskPatches(patch=8, ratio=0.7)(samples, seeded(4), {}):
        keep, masked = sample["image"]["extra/keep"], sample["image"]["target/masked"]
        assert len(keep) == 24 - round(0.7 * 24)
        assert np.array_equal(np.flatnonzero(~masked), keep)
        assert masked.shape == (24,)
        hidden += masked
    assert all(within(int(found), 200, 17 / 24) for found in hidden)


@pytest.mark.parametrize(
    "corruptor",
    [MaskText(), MaskText(whole_words=True), Mismatch(), Mismatch(law="half"), MaskPatches(patch=8)],
    ids=str,
)
def test_the_generator_decides_alone(
    makers: Any, samples_of: Callable[[list[str]], list[Sample]], corruptor: Any
) -> None:
    def made(seed: int) -> list[tuple[str, bytes]]:
        samples = samples_of(random_texts(30))
        for sample in samples:
            sample["image"] = {"data": np.zeros((3, 32, 32), np.float32)}
        items = [
            item
            for sample in corruptor(samples, seeded(seed), makers)
            for item in sample[corruptor.stream].items()
        ]
        return [(name, np.asarray(value).tobytes()) for name, value in items]

    assert made(0) == made(0)
    assert made(0) != made(1)


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match="mask_text: rate must be between 0 and 1, got 0"):
        MaskText(rate=0)
    with pytest.raises(ValueError, match="mask_patches: ratio must be between 0 and 1, got 1"):
        MaskPatches(patch=8, ratio=1)


@pytest.mark.parametrize("rate", [0.01, 0.9])
def test_windows_that_are_padding_are_not_masked(rate: float) -> None:
    """Of the clips of a video, the second has no windows: those of the first alone may be chosen, at least one."""
    feats = np.ones((2, 5, 3), np.float32)
    samples = [{"video": {"data": feats, LENGTHS: np.array([2, 0])}} for _ in range(50)]
    found = MaskFrames(rate=rate)(samples, lambda k: np.random.default_rng(k), {})
    masked = np.stack([sample["video"]["target/masked"] for sample in found])
    assert not masked[:, 0, 2:].any()
    assert not masked[:, 1].any()
    assert masked.any((1, 2)).all()
