from __future__ import annotations

import random

import pytest

from vlpipe.stages.decontamination.image_hits import Hit
from vlpipe.stages.decontamination.ngrams import Captions

EVAL = [
    ("c.json[0]", "Two dogs chase a red ball over the wet grass."),  # 10 words: 5 runs of 6
    ("c.json[1]", "A man rides a horse."),
    ("c.json[2]", "A dog"),
    ("c.json[3]", "two dogs chase a red ball over the road"),
]
CAPTIONS = Captions(EVAL, n=6, min_words=5)


@pytest.mark.parametrize(
    ("text", "hit"),
    [
        ("TWO dogs chase a red ball, over the wet grass!", Hit("same_text", "c.json[0]", 1.0)),
        ("Photo: two dogs chase a red ball | shop", Hit("ngrams", "c.json[0]", 1 / 5)),
        ("dogs chase a red ball over the wet grass, and more", Hit("ngrams", "c.json[0]", 4 / 5)),
        ("see two dogs chase a red ball over the road", Hit("ngrams", "c.json[3]", 1.0)),
        ("two dogs chase a red car over the wet grass", None),
        ("here a man rides a horse", Hit("ngrams", "c.json[1]", 1.0)),
        ("a man rides a big horse", None),
        ("a dog", None),
        ("", None),
    ],
)
def test_what_matches(text: str, hit: Hit | None) -> None:
    assert CAPTIONS.find(text) == hit


@pytest.mark.parametrize(
    ("text", "witness"),
    [
        ("一只棕色的狗在绿色的草地上奔跑", "zh"),
        ("照片 一只棕色的狗在绿色的草地上奔跑。", "zh"),
        ("赤いボールを追いかけて走る二匹の犬、公園で", "ja"),
        ("一只棕色的狗", None),
        ("สุนัขสีน้ำตาลวิ่งบนหญ้า", "th"),
        ("extraordinary photography", None),
    ],
)
def test_sentences_without_spaces_are_compared_whole(text: str, witness: str | None) -> None:
    evaluation = [
        ("zh", "一只棕色的狗在绿色的草地上奔跑。"),
        ("short", "一只棕色的狗"),
        ("ja", "赤いボールを追いかけて走る二匹の犬、公園で"),
        ("th", "สุนัขสีน้ำตาลวิ่งบนหญ้า"),
        ("en", "extraordinary photography"),
    ]
    captions = Captions(evaluation, n=8, min_words=5)
    assert captions.num_short == 2
    hit = captions.find(text)
    assert (hit and hit.witness) == witness


def test_short_evaluation_texts_are_counted() -> None:
    assert (CAPTIONS.num_texts, CAPTIONS.num_short) == (4, 1)


def test_the_same_as_looking_at_every_pair() -> None:
    """The definition, word for word, on 40 x 400 random texts of a small language."""
    rng = random.Random(0)

    def sentence() -> list[str]:
        return [rng.choice("abc") for _ in range(rng.randint(1, 12))]

    evaluation, texts = [sentence() for _ in range(40)], [sentence() for _ in range(400)]

    def holds(text: list[str], run: list[str]) -> bool:
        return any(text[i : i + len(run)] == run for i in range(len(text) - len(run) + 1))

    def match(text: list[str], item: list[str]) -> bool:
        if len(item) < 4:
            return False
        n = min(7, len(item))
        return any(holds(text, item[i : i + n]) for i in range(len(item) - n + 1))

    captions = Captions([(str(n), " ".join(e)) for n, e in enumerate(evaluation)], n=7, min_words=4)
    found = [captions.find(" ".join(text)) for text in texts]
    assert [hit is not None for hit in found] == [any(match(t, e) for e in evaluation) for t in texts]
    assert 20 < sum(hit is not None for hit in found) < 380
    assert all(match(t, evaluation[int(hit.witness)]) for t, hit in zip(texts, found, strict=True) if hit)


@pytest.mark.slow
def test_real_alt_texts_hold_no_caption_of_flickr8k(alt_texts: list[str], dev_captions: list[str]) -> None:
    captions = Captions([(str(n), c) for n, c in enumerate(dev_captions)], n=8, min_words=5)
    assert (captions.num_texts, captions.num_short) == (5000, 73)
    assert [t for t in alt_texts if captions.find(t)] == []
    planted = [f"Stock photo - {c} - buy it" for c in dev_captions]
    assert sum(captions.find(t) is not None for t in planted) == 5000 - 73
