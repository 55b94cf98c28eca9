from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import Weights
from vlpipe.pipeline.testing import run_map
from vlpipe.stages.common.row import TEXTS, text
from vlpipe.stages.common.rule import encoder_of
from vlpipe.stages.filter.language import Language

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def write_fasttext(path: Path, labels: dict[str, Sequence[str]]) -> None:
    """A supervised fastText model of known weights: each word has a unit vector that is its label's."""
    words = ["</s>", *(w for ws in labels.values() for w in ws)]
    dim, names = len(labels), list(labels)
    vectors = [[0.0] * dim] + [
        [8.0 * (n == k) for n in range(dim)] for k, ws in enumerate(labels.values()) for _ in ws
    ]
    args = (
        dim,
        5,
        5,
        1,
        5,
        1,
        3,
        3,
        0,
        0,
        0,
        100,
    )  # ..., loss softmax, model supervised, no buckets, no n-grams
    data = struct.pack("<ii", 793712314, 12) + struct.pack("<12id", *args, 1e-4)
    data += struct.pack("<iiiqq", len(words) + dim, len(words), dim, 100, -1)
    for kind, entries in enumerate((words, [f"__label__{name}" for name in names])):
        for entry in entries:
            data += entry.encode() + b"\x00" + struct.pack("<qb", 10, kind)
    identity = [[float(n == k) for n in range(dim)] for k in range(dim)]
    for rows in (vectors, identity):
        data += struct.pack("<?qq", False, len(rows), dim) + struct.pack(
            f"<{len(rows) * dim}f", *(v for row in rows for v in row)
        )
    path.write_bytes(data)


def rows_of(values: list[list[str]]) -> pa.Table:
    entries = [[text(value, "web") for value in each] for each in values]
    return pa.table({"id": [f"r{i}" for i in range(len(values))], "texts": pa.array(entries, TEXTS)})


def identified(values: list[list[str]], **more: Any) -> tuple[list[Any], list[Any]]:
    out = run_map(Language(batch_size=16, **more), rows_of(values)).table
    return out["language"].to_pylist(), out["language_score"].to_pylist()


def test_py3langid_comes_without_a_model() -> None:
    values = [["a small brown dog on the beach", "ein kleiner brauner Hund am Strand"], ["", "  "], []]
    languages, scores = identified(values)
    assert languages == [["en", "de"], [None, None], []]
    assert all(0.5 < s <= 1 for s in scores[0])
    assert scores[1] == [None, None]
    schema = Language().schema(rows_of([["a"]]).schema)
    assert (encoder_of(schema, "language"), encoder_of(schema, "language_score")) == (
        "py3langid",
        "py3langid",
    )


def test_captions_in_thirteen_languages() -> None:
    """As in benchmarks/language.md, on both halves: 20 of 520 may be wrong."""
    lines = (BENCHMARKS / "language_texts.tsv").read_text().splitlines()
    labels, values = zip(*(line.split("\t") for line in lines), strict=True)
    (languages,), _ = identified([list(values)])
    assert {labels.count(label) for label in labels} == {40}
    assert sum(found == label for found, label in zip(languages, labels, strict=True)) >= 500
    english = [label for found, label in zip(languages, labels, strict=True) if found == "en"]
    assert english.count("en") == 40
    assert len(english) <= 42


def test_english_alt_text_is_called_english(data: Callable[[str], Path]) -> None:
    texts = pq.read_table(data("alttext") / "laion_10000.parquet")["TEXT"].to_pylist()
    lines = [line.split("\t") for line in (BENCHMARKS / "language_alttext.tsv").read_text().splitlines()]
    (languages,), _ = identified([[texts[int(row)] for row, label in lines if label == "en"]])
    assert len(languages) == 303
    assert languages.count("en") >= 0.95 * 303


@pytest.mark.slow
def test_languages_and_prior_are_parameters() -> None:
    values = [["ein kleiner brauner Hund am Strand", "sofa"]]
    assert identified(values, languages=("en", "nl"), prior={})[0][0][0] == "nl"
    assert identified(values, languages=("en", "de"), prior={"de": 1000})[0] == [["de", "de"]]
    assert identified(values, languages=("en", "de"), prior={"en": 5})[0] == [["de", "en"]]
    with pytest.raises(VlpipeError, match=r"py3langid does not know the language 'deu'; did you mean"):
        identified(values, languages=("en", "deu"))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (
            {"model": Weights(path="lid.176.ftz"), "prior": {"en": 2}},
            "prior can be set only for py3langid, but this",
        ),
        ({"languages": ("en",)}, "languages: wanted two or more different languages, got"),
        ({"languages": ("en", "de", "en")}, "languages: wanted two or more different languages, got"),
        ({"languages": ("en", "de"), "prior": {"fr": 2}}, "prior: fr is not in `languages`"),
    ],
)
def test_labels_that_cannot_be_are_named_before_the_run(parameters: dict[str, Any], problem: str) -> None:
    (found,) = Language(**parameters).preflight()
    assert found.startswith(problem)


def test_a_fasttext_file(tmp_path: Path) -> None:
    """Softmax of the mean of the words' vectors: both words of a language give exp(8) / (exp(8) + 1)."""
    write_fasttext(tmp_path / "lid.176.bin", {"en": ["dog", "beach"], "de": ["Hund", "Strand"]})
    model = Weights(path=str(tmp_path / "lid.176.bin"))
    languages, scores = identified([["dog\nbeach"], ["Hund Strand", "dog"]], model=model)
    assert languages == [["en"], ["de", "en"]]
    assert all(0.5 < s <= 1 for each in scores for s in each)
    assert encoder_of(Language(model=model).schema(rows_of([["a"]]).schema), "language") == "lid.176"
    with pytest.raises(VlpipeError, match=r"there is no fastText model none\.ftz"):
        identified([["a"]], model=Weights(path="none.ftz"))


def test_a_transformers_classifier(bert_folder: Path) -> None:
    values = [["a red dog", "ein Hund"], ["two dogs"], ["blue circle", "a"]]
    weights = Weights(path=str(bert_folder))
    languages, scores = identified(values, model=weights, max_length=8)
    model = BertForSequenceClassification.from_pretrained(bert_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(bert_folder)
    for ts, ls, ss in zip(values, languages, scores, strict=True):
        for value, language, score in zip(ts, ls, ss, strict=True):
            with torch.inference_mode():
                probs = model(**tokenizer([value], return_tensors="pt")).logits.softmax(1)[0]
            assert language == model.config.id2label[int(probs.argmax())]
            assert score == pytest.approx(float(probs.max()), abs=1e-5)
    assert identified(values[1:2], model=weights, max_length=8) == (languages[1:2], scores[1:2])
