"""Made-up recorded answers."""

from __future__ import annotations

from vlpipe.pipeline.engine.records.answers import Answer


def answer(number: int, request: str = "r", text: str = "a dog") -> Answer:
    return Answer(
        id=f"{number:064x}",
        request=request,
        url=f"http://host.test/{number}",
        sha256=f"{number:064x}",
        at=1,
        status=200,
        finish="stop",
        text=text,
        refusal=None,
        model="m",
        tokens_in=3,
        tokens_out=2,
    )
