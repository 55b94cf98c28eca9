from __future__ import annotations

import pytest

from vlpipe.stages.text_dedup.forms import jaccard, ngrams, normal_form, shingles


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("A dog, running!", "a dog running"),
        ("  a\tdog \n running ", "a dog running"),
        ("\uff26\uff55ll width \ufb01le \u21165", "full width file no5"),
        ("STRASSE Straße", "strasse strasse"),
        ("man's best-friend | photo", "man s best friend photo"),
        ("so\u00adft hyphen, ze\u200bro width", "soft hyphen zero width"),
        ("हिन्दी में", "हिन्दी में"),  # vowel signs are marks, not letters: they stay
        ("e\u0301t\u00e9", "été"),
        (":-)", ":-)"),
        ("🐕 dog", "dog"),
        ("🐕", "🐕"),
        (" \u200b ", ""),
        ("", ""),
    ],
)
def test_normal_form(text: str, form: str) -> None:
    assert normal_form(text) == form


def test_the_form_of_a_form_is_itself(alt_texts: list[str]) -> None:
    forms = [normal_form(text) for text in alt_texts]
    assert forms == [normal_form(form) for form in forms]


def test_shingles_and_their_jaccard() -> None:
    assert shingles("abcdefg") == {"abcde", "bcdef", "cdefg"}
    assert shingles("ab") == {"ab"}
    assert jaccard(shingles("abcdefg"), shingles("abcdefg")) == 1
    assert jaccard(shingles("abcdefg"), shingles("bcdefgh")) == 2 / 4
    assert jaccard(shingles("abc"), shingles("abd")) == 0


def test_ngrams() -> None:
    assert ngrams(["a", "b", "c", "d"], 3) == ["a b c", "b c d"]
    assert ngrams(["a"], 2) == []
