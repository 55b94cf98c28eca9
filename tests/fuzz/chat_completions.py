"""Bodies of chat completions: what a server says is an answer or none, and no text or number in it does harm."""

from __future__ import annotations

import contextlib
import json
import math

from kind import Kind, pieces

from vlpipe.pipeline.engine.records.answers import answers_in, line_of
from vlpipe.stages.endpoint.client import Response
from vlpipe.stages.endpoint.columns import BadJson, fields_of, parsed
from vlpipe.stages.endpoint.outcomes import Rules, plain, why_not
from vlpipe.stages.endpoint.prompts import Request, Row
from vlpipe.stages.endpoint.reply import NoAnswer, answer_of, probability_of

SECRET = "sk-4711"
ARRAY = {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}
FIELDS = fields_of(
    {
        "type": "object",
        "properties": {"caption": {"type": "string"}, "n": {"type": "integer"}, "boxes": ARRAY},
    }
)
RULES = Rules(max_words=50)
REQUEST = Request(Row("r", bytes, "http://a.test/1", None), "0" * 32, b"", b"")


def read(data: bytes) -> None:
    """Reads a body as `caption.endpoint` and `filter.vqascore` do."""
    refused = answer_of(REQUEST, Response(400, data), SECRET)
    assert SECRET not in repr(refused)
    try:
        answer = answer_of(REQUEST, Response(200, data), SECRET)
    except NoAnswer as failure:
        if SECRET in failure.detail:
            raise AssertionError("the key is in the error") from failure
        raise
    assert SECRET not in repr(answer)
    for one in (refused, answer):
        assert answers_in(line_of(one)) == [one]
    caption = plain(answer.text)
    assert caption.isprintable()
    why_not(answer, caption, RULES, None)
    with contextlib.suppress(BadJson):
        found = parsed(answer.text or "", FIELDS)
        assert found["caption"] is None or found["caption"].isprintable()
    for against in ("", "No"):
        score = probability_of(answer, "Yes", against)
        assert score is None or (math.isfinite(score) and 0 <= score <= 1)


TOP = [{"token": "Yes", "logprob": -0.5, "bytes": None}, {"token": " no", "logprob": -1.5}]
MESSAGE = {"role": "assistant", "content": '{"caption": "a dog", "n": 3, "boxes": [[0, 0.5, 1, 1]]}'}
COMPLETION = {
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": MESSAGE,
            "finish_reason": "stop",
            "logprobs": {"content": [{**TOP[0], "top_logprobs": TOP}]},
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
}
REFUSED = {"choices": [{"message": {"content": None, "refusal": f"no {SECRET}"}, "finish_reason": "length"}]}
PARTS = {"choices": [{"message": {"content": [{"type": "text", "text": "a dog \u202e"}]}}]}
KIND = Kind(
    name="completions",
    read=read,
    seeds=[
        *(json.dumps(one).encode() for one in (COMPLETION, REFUSED, PARTS)),
        json.dumps({"error": {"message": f"bad key {SECRET}", "code": 401}}).encode(),
        b"<html>",
    ],
    pieces=pieces(
        '{¦}¦[¦]¦,¦:¦"¦\\u0000¦\\ud800¦null¦NaN¦-Infinity¦1e999¦"content"¦"logprob"¦"token"¦"choices"¦"message"¦"Yes"¦'
        '"top_logprobs"¦```json¦a cat on a ¦sk-4711¦\\u0073k-4711¦"usage"¦"refusal"¦"error"'
    ),
    frames=[
        (b'{"choices": [{"message": {"content": "', b'"}}]}'),
        (b'{"choices": [{"message": {"content": "Yes"}, "logprobs": {"content": [', b"]}}]}"),
        (b'{"error": ', b"}"),
        (b"", b""),
    ],
    typed=(NoAnswer,),
    max_bytes=1 << 20,
)
