from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.common.row import text
from vlpipe.stages.common.rule import load_preset
from vlpipe.stages.filter.rules import Rules
from vlpipe.stages.hygiene.phrases import start_length, without_start
from vlpipe.stages.hygiene.profile import CaptionProfile, captioner
from vlpipe.stages.hygiene.repetition import num_repeats
from vlpipe.stages.hygiene.signals import COLUMNS, CaptionSignals, StripBoilerplate
from vlpipe.stages.hygiene.unsupported import new_names, new_numbers

Rows = Callable[..., pa.Table]


@pytest.mark.parametrize(
    ("caption", "rest"),
    [
        ("The image shows a red dog on grass.", "A red dog on grass."),
        ("This photograph depicts two dogs.", "Two dogs."),
        ("In this image, we can see a small circle", "A small circle"),
        ("The image features a dog. The image shows a cat.", "A dog. The image shows a cat."),
        ("Sure! Here is a caption: A dog in the snow", "A dog in the snow"),
        ("Caption: a dog", "A dog"),
        ("a picture of two cats", "two cats"),
        ("The black and white image shows a dog", "The black and white image shows a dog"),
        ("An image of the image shows a dog", "A dog"),
        ("A dog looks at the image of itself", "A dog looks at the image of itself"),
        ("Images showing dogs", "Images showing dogs"),
        ("The image shows", ""),
        ("", ""),
    ],
)
def test_phrases_that_say_nothing_are_taken_off(caption: str, rest: str) -> None:
    assert without_start(caption) == rest
    assert (start_length(caption) > 0) == (rest != caption)


@pytest.mark.parametrize(
    ("caption", "times"),
    [
        ("", 0),
        ("a dog", 1),
        ("a dog a dog", 2),
        ("very very very very good", 2),
        ("the dog runs in the dog runs in the dog runs in the park", 3),
        ("red " * 20, 10),
        ("a b c d e f g h i j k l " * 4, 4),
        ("a dog and a cat and a dog", 1),
        ("\u72ac\u3068\u732b\u72ac\u3068\u732b\u72ac\u3068\u732b", 3),
    ],
)
def test_loops_are_counted(caption: str, times: int) -> None:
    assert num_repeats(caption) == times


def test_numbers_and_names_that_the_alt_text_lacks_are_counted() -> None:
    known = ["Sunset over Lisbon, 25 May 2019", "eiffel tower"]
    assert new_numbers("Two boats, 3 men and 25 birds in 2019", known) == 1
    assert new_numbers("1,200 birds", ["1200 birds"]) == 1
    assert new_names("A view of Lisbon and the Eiffel tower in Paris. Boats pass.", known) == 1
    assert new_names("A man named John Smith with a TV. The sign says \u201cStop\u201d", known) == 2
    assert new_names("I think that I'm in Lisbon", known) == 0
    assert new_names("A Dog And A Cat In The Park", known) is None
    assert new_names("a dog", []) == 0


def caption_rows(text_rows: Rows) -> pa.Table:
    synth = [
        "A red dog runs on the grass.",
        "I'm sorry, but I can\u2019t help with this picture.",
        "The image could not be loaded, please upload another one.",
        "The image shows a red dog on the grass",
        "a dog a dog a dog a dog",
        "dog",
        "A dog with 3 balls on the grass",
        "A dog named Bello on the grass",
        "word " * 300,
    ]
    return text_rows({f"r{i}": ["my dog Rex", text(one, "synth")] for i, one in enumerate(synth)})


WHYS = [
    None,
    *(
        "refusal",
        "missing_image",
        "boilerplate",
        "repetition",
        "too_short",
        "new_numbers",
        "new_names",
        "repetition",
    ),
]


def test_the_preset_drops_each_kind_of_caption_for_its_reason_and_counts(text_rows: Rows) -> None:
    table = run_map(CaptionSignals(), caption_rows(text_rows)).table
    out = run_map(Rules(preset="captions", sources=("synth",), skip=("wrong_language",)), table)
    texts = out.table["texts"].to_pylist()
    assert [ts[1]["why"] for ts in texts] == WHYS
    assert {ts[0]["why"] for ts in texts} == {None}
    assert out.counts["fails:repetition"] == out.counts["drops:repetition"] == 2
    assert out.counts["fails:too_long"] == 1
    assert out.counts["drops:too_long"] == 0
    assert {rule.code for rule in load_preset("captions")} > {why for why in WHYS if why}


def test_texts_of_others_and_dropped_ones_have_no_signals(text_rows: Rows) -> None:
    gone = text("The image shows a dog", "synth", kept=False, why="empty")
    found = run_map(CaptionSignals(), text_rows({"a": ["The image shows", gone], "b": []})).table
    for name in COLUMNS:
        assert found[name].to_pylist() == [[None, None], []]


def test_stripping_changes_only_what_has_a_phrase(text_rows: Rows) -> None:
    table = text_rows(
        {
            "a": ["The image shows x", text("The image shows a dog", "synth")],
            "b": [text("This image shows", "synth")],
        }
    )
    out = run_map(StripBoilerplate(), table)
    ((web, synth), (nothing,)) = out.table["texts"].to_pylist()
    assert (web["text"], synth["text"]) == ("The image shows x", "A dog")
    assert (nothing["text"], nothing["kept"], nothing["why"]) == ("", False, "empty")
    assert out.counts == {"stripped": 2}


def test_hostile_captions_take_linear_time(text_rows: Rows) -> None:
    hostile = ["the image " * 50_000, "(" * 500_000, "here is " * 50_000, "a" * 500_000, "A B " * 100_000]
    found = run_map(CaptionSignals(), text_rows({"a": [text(one, "synth") for one in hostile]})).table
    assert len(found["num_repeats"].to_pylist()[0]) == 5


def test_a_profile_says_of_each_captioner_how_long_and_how_rich_its_captions_are(
    text_rows: Rows, tmp_path: Path
) -> None:
    digest = "0123456789abcdef"
    mine = [
        text("a red dog", "synth", model=digest),
        text("a dog", "synth", model=digest, kept=False, why="too_short"),
    ]
    other = [text("Two dogs, two cats", "synth", model=f"{digest}/short")]
    table = text_rows({"a": ["web text", *mine], "b": other, "c": [text("x", "synth")]})
    out = run_gather(CaptionProfile(), [dataset(tmp_path / "in", table)], tmp_path).table
    found: dict[str, Any] = {row["name"]: (row["value"], row["num_rows"]) for row in out.to_pylist()}
    name = digest[:12]
    assert found[f"caption_words_mean/{name}"] == (2.5, 2)
    assert found[f"caption_words_median/{name}"] == (2, 2)
    assert found[f"caption_words_p95/{name}"] == (3, 2)
    assert found[f"caption_vocabulary/{name}"] == (3, 2)
    assert found[f"caption_kept/{name}"] == (0.5, 2)
    assert found[f"caption_dropped/{name}/too_short"] == (0.5, 2)
    assert found[f"caption_vocabulary/{name}/short"] == (3, 1)
    assert found["caption_words_mean/unknown"] == (1, 1)
    few = run_gather(
        CaptionProfile(vocabulary_texts=1), [dataset(tmp_path / "in2", table)], tmp_path / "few"
    ).table
    assert (few["name"].to_pylist(), few.num_rows) == (out["name"].to_pylist(), out.num_rows)
    assert captioner("hub:org/name@" + "0a" * 20 + "/short") == "hub:org/name@0a0a0a0a0a0a/short"
