"""What is wrong with a caption."""

from __future__ import annotations

import time

import pytest

from vlpipe.stages.endpoint.outcomes import is_refusal, loops, plain


@pytest.mark.parametrize(
    "text",
    [
        "red red red red red red red red red",
        "a cat sits. a cat sits. a cat sits. a cat sits.",
        "first " + "on the table and " * 5,
        "\u732b\u304c\u5ea7\u308b" * 4,
    ],
)
def test_a_loop(text: str) -> None:
    assert loops(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a very very very very good dog",
        "one two three four five six seven eight nine ten",
        "a red ball, a blue ball, a green ball, a red box",
        "\u732b\u304c\u5ea7\u308b\u3002\u72ac\u304c\u8d70\u308b\u3002",
    ],
)
def test_no_loop(text: str) -> None:
    assert not loops(text)


def test_a_long_text_takes_linear_time() -> None:
    began = time.monotonic()
    assert not loops(" ".join(map(str, range(100_000))))
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize(
    "text", ["I'm sorry, but I can't help", "I\u2019m sorry", '"I cannot', "As an AI model"]
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)
    assert not is_refusal(f"a sign that says {text}")


def test_a_caption_is_stored_on_one_line() -> None:
    assert plain("\x1b[31ma\tdog\r\n on\u202e a\u00a0mat\x00 ") == "[31ma dog on a mat"
    assert plain(None) == ""
    assert len(plain("\x00" * 10**7 + "a")) < 10**5
