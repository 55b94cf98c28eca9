from __future__ import annotations

import sys
import unicodedata

import pyarrow as pa
import pytest

from vlpipe.stages.common.measures import ROW_MEASURES, TEXT_MEASURES

TEXTS = [
    "a dog on the beach",
    "",
    "   ",
    "  two\u00a0words\t",
    "Dog dog DOG cat",
    "100 % naïve — 日本語",
    "https://example.org/a.jpg?x=1",
    "see https://example.org",
    "WWW.example.org",
    "IMG_1234",
    "dsc00042.JPG",
    "holiday photo.jpg",
    "sunset-01.jpeg",
    "image 12",
    "a photo of 12 dogs",
    "e\u0301",
]


def measured(name: str, texts: list[str]) -> list[object]:
    return list(TEXT_MEASURES[name][0](pa.array(texts, pa.string())).to_pylist())


def test_words_and_characters_are_those_of_python() -> None:
    assert measured("num_words", TEXTS) == [len(t.split()) for t in TEXTS]
    assert measured("num_chars", TEXTS) == [len(t) for t in TEXTS]
    every = [f"a{chr(c)}b" for c in range(sys.maxunicode + 1) if not 0xD800 <= c <= 0xDFFF]
    assert measured("num_words", every) == [len(t.split()) for t in every]


def test_alnum_ratio_counts_letters_and_numbers() -> None:
    def reference(text: str) -> float | None:
        return sum(unicodedata.category(c)[0] in "LN" for c in text) / len(text) if text else None

    assert measured("alnum_ratio", TEXTS) == [reference(t) for t in TEXTS]


def test_unique_words_and_repetition_add_up_to_one() -> None:
    def reference(text: str) -> float | None:
        words = text.lower().split()
        return len(set(words)) / len(words) if words else None

    unique, repeated = measured("unique_word_ratio", TEXTS), measured("word_repetition", TEXTS)
    assert unique == [reference(t) for t in TEXTS]
    assert unique[4] == 0.5
    assert [u is None or u + r == 1.0 for u, r in zip(unique, repeated, strict=True)] == [True] * len(TEXTS)


def test_texts_that_are_only_an_address_or_a_file_name() -> None:
    assert [t for t, is_url in zip(TEXTS, measured("is_url", TEXTS), strict=True) if is_url] == [
        "https://example.org/a.jpg?x=1",
        "WWW.example.org",
    ]
    names = ["https://example.org/a.jpg", "IMG_1234", "dsc00042.JPG", "sunset-01.jpeg", "image 12"]
    found = measured("is_file_name", [*TEXTS, names[0]])
    assert [t for t, is_name in zip([*TEXTS, names[0]], found, strict=True) if is_name] == [
        *names[1:],
        names[0],
    ]


SIZES = [(100, 300), (300, 100), (64, 64), (1, 50_000), (50_000, 50_000)]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("min_side", [100, 100, 64, 1, 50_000]),
        ("max_side", [300, 300, 64, 50_000, 50_000]),
        ("aspect_ratio", [3.0, 3.0, 1.0, 50_000.0, 1.0]),
        ("num_pixels", [30_000, 30_000, 4096, 50_000, 2_500_000_000]),
    ],
)
def test_sizes(name: str, values: list[float]) -> None:
    rows = pa.table(
        {
            "width": pa.array([w for w, _ in SIZES], pa.int32()),
            "height": pa.array([h for _, h in SIZES], pa.int32()),
        }
    )
    assert ROW_MEASURES[name][0](rows).to_pylist() == values


def test_the_original_size_counts_where_it_is_known() -> None:
    size = {
        "width": [10, 10],
        "height": [20, 20],
        "original_width": [400, None],
        "original_height": [800, None],
    }
    rows = pa.table({name: pa.array(values, pa.int32()) for name, values in size.items()})
    assert ROW_MEASURES["min_side"][0](rows).to_pylist() == [400, 10]


def test_bytes_are_those_of_the_encoded_image() -> None:
    rows = pa.table({"image": pa.array([b"12345", b""], pa.binary())})
    assert ROW_MEASURES["num_bytes"][0](rows).to_pylist() == [5, 0]
