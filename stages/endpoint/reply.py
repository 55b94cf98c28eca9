"""Reads a chat completion. Whatever a server sends becomes an answer or a NoAnswer; nothing in it is trusted."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any

from vlpipe.pipeline.engine.records.answers import Answer
from vlpipe.stages.endpoint.client import Response
from vlpipe.stages.endpoint.prompts import Request

HIDDEN = "(hidden)"
MAX_TOKENS = 1 << 31
MAX_TEXT_CHARS = 100_000
MAX_MESSAGE_CHARS = 300
LONE = re.compile(r"[\ud800-\udfff\x00]")
# A request with one of these would be refused again: the refusal is an answer, which is stored.
FINAL = frozenset({400, 413, 415, 422})
# These say that nobody is let in, or that there is no such model: no row is at fault.
SHUT = frozenset({401, 403, 404, 405})


class NoAnswer(Exception):
    """A response that holds no answer, though another attempt may get one. why: http_<status>, redirect or bad_answer."""

    def __init__(self, why: str, detail: str = "") -> None:
        self.why, self.detail = why, detail
        super().__init__(f"{why}: {detail}")


def answer_of(request: Request, response: Response, secret: str = "") -> Answer:
    """Returns the answer in a response, a final refusal included. Raises NoAnswer. No text in either holds `secret`.

    Lone surrogates and NULs in its texts, which no file can hold, become U+FFFD; texts have at most MAX_TEXT_CHARS.
    """
    status = response.status
    if status in FINAL:
        return _made(request, status, refusal=message_of(response.body, secret))
    if 300 <= status < 400:
        raise NoAnswer("redirect", f"the server answered {status}; redirects are not followed")
    if status != 200:
        raise NoAnswer(f"http_{status}", message_of(response.body, secret))
    try:
        found = json.loads(response.body)
        choice = found["choices"][0]
        message = choice["message"]
        text, refusal = _text(message.get("content"), secret), _string(message.get("refusal"), secret)
        if text is None and refusal is None and message.get("content") is not None:
            raise TypeError("content is not a text")
        usage = found.get("usage") if isinstance(found.get("usage"), dict) else {}
        return _made(
            request,
            status,
            finish=_string(choice.get("finish_reason"), secret),
            text=text,
            refusal=refusal,
            model=_string(found.get("model"), secret),
            tokens_in=_count(usage.get("prompt_tokens")),
            tokens_out=_count(usage.get("completion_tokens")),
            extra=_extra(choice.get("logprobs"), secret),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise NoAnswer("bad_answer", f"not a chat completion ({type(error).__name__})") from None


def hidden(text: str, secret: str) -> str:
    """Returns a text without `secret`, if there is one, also as JSON spells it."""
    if not secret:
        return text
    return text.replace(secret, HIDDEN).replace(json.dumps(secret)[1:-1], HIDDEN)


def _made(request: Request, status: int, **fields: Any) -> Answer:
    given: dict[str, Any] = dict.fromkeys(("finish", "text", "refusal", "model", "extra"))
    given |= {"tokens_in": 0, "tokens_out": 0, **fields}
    return Answer(
        id=request.row.id,
        request=request.hash,
        url=request.row.url,
        sha256=request.row.sha256,
        at=int(time.time()),
        status=status,
        **given,
    )


def _text(content: Any, secret: str) -> str | None:
    """Returns the text of a message's content, which is a string or a list of parts."""
    if isinstance(content, list):
        parts = [one["text"] for one in content if isinstance(one, dict) and isinstance(one.get("text"), str)]
        return _string("".join(parts), secret)
    return _string(content, secret)


def _string(value: Any, secret: str) -> str | None:
    if not isinstance(value, str):
        return None
    return LONE.sub(
        "\ufffd", hidden(value, secret)[:MAX_TEXT_CHARS]
    )  # hidden first: a cut would leave half of it


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_TOKENS else 0


def _extra(logprobs: Any, secret: str) -> str | None:
    if not isinstance(logprobs, dict):
        return None
    text = hidden(json.dumps({"logprobs": logprobs}, separators=(",", ":"), ensure_ascii=False), secret)
    return LONE.sub("\ufffd", text) if len(text) <= MAX_TEXT_CHARS else None


def message_of(body: bytes, secret: str = "") -> str:
    """Returns the error message in a response's body, on one line, without `secret`."""
    try:
        found: Any = json.loads(body)
        if isinstance(found, Mapping) and "error" in found:
            found = found["error"]
        if isinstance(found, Mapping):
            found = found.get("message") or found.get("detail") or ""
        text = found if isinstance(found, str) else str(found)
    except (ValueError, RecursionError):
        text = body.decode("utf-8", "replace")
    text = hidden(text, secret)  # before it is cut
    text = "".join(c if c.isprintable() else " " for c in text[: 4 * MAX_MESSAGE_CHARS])
    return " ".join(text.split())[:MAX_MESSAGE_CHARS]


def probability_of(answer: Answer, wanted: str, against: str = "") -> float | None:
    """Returns the probability that an answer's first token is `wanted`, by its log-probabilities; None if it has none."""
    try:
        found = json.loads(answer.extra or "{}").get("logprobs")
    except RecursionError:
        return None
    return of_logprobs(found, wanted, against)


def of_logprobs(logprobs: Mapping[str, Any], answer: str, against: str = "") -> float | None:
    """Returns the probability of an answer from the first token's `logprobs` of a chat completion; None if it has none.

    logprobs: the object of that name in OpenAI's answers, asked for with `logprobs: true, top_logprobs: 20, max_tokens: 1`.
    The probabilities of tokens that are the answer but for case and spaces are added up. An answer that is not among the
    likeliest tokens has probability 0. against: another answer; the probability is then that of `answer` as a
    share of both, None if neither is there.
    """
    try:
        first = logprobs["content"][0]
        found = [(str(one["token"]), float(one["logprob"])) for one in (first.get("top_logprobs") or [first])]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    if any(math.isnan(log) for _, log in found):
        return None

    def sum_of(wanted: str) -> float:
        return sum(math.exp(min(log, 0.0)) for token, log in found if _bare(token) == _bare(wanted))

    if not against:
        return min(1.0, sum_of(answer))
    total = sum_of(answer) + sum_of(against)
    return sum_of(answer) / total if total else None


def _bare(token: str) -> str:
    return token.strip("\u2581\u0120 \n").casefold()
