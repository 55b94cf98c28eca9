"""Generates stand-ins for human annotations of demo films: captions of segments, and questions with answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vlpipe.stages.demo.captions import COLOUR_WORDS, SHAPE_WORDS
from vlpipe.stages.demo.film import Segment
from vlpipe.stages.demo.scenes import Thing
from vlpipe.stages.demo.speech import MOTION_WORDS, clause, ground_word, thing_words

NUMBERS = ("zero", "one", "two")


def captions(segment: Segment, num: int, rng: np.random.Generator) -> dict[str, Any]:
    """Returns a segment's row of the table `captions` (see `video_world`), with `num` captions."""
    span = {"start_s": segment.start_s, "end_s": segment.end_s}
    return {**span, "captions": [_caption(segment, rng) for _ in range(num)]}


def _caption(segment: Segment, rng: np.random.Generator) -> str:
    parts = [clause(segment, rng, "a", detail=0.8)]
    if len(segment.scene.things) == 2 and rng.random() < 0.8:
        parts.append(f"beside a {thing_words(segment.scene.things[1], rng, with_size=True)}")
    if rng.random() < 0.7:
        parts.append(f"on {ground_word(segment.scene, rng)}")
    return " ".join(parts)


def questions(segments: Sequence[Segment], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns rows of the table `questions` (see `video_world`): two per segment and at most one on order.

    That one asks which of two objects comes first. It needs two segments whose first objects appear in no other segment.
    """
    found = []
    for segment in segments:
        asked = _about(segment)
        for at in sorted(rng.permutation(len(asked))[:2]):
            kind, question, answer = asked[at]
            span = {"start_s": segment.start_s, "end_s": segment.end_s}
            found.append({**span, "kind": kind, "question": question, "answer": answer})
    return found + _order(segments)


def _about(segment: Segment) -> list[tuple[str, str, str]]:
    """Returns (kind, question, answer), in the most common words."""
    thing = segment.scene.things[0]
    colour, shape = COLOUR_WORDS[thing.colour][0], SHAPE_WORDS[thing.shape][0]
    return [
        ("colour", f"what colour is the {shape} ?", colour),
        ("shape", f"what shape is {colour} ?", shape),
        ("motion", f"what does the {colour} {shape} do ?", MOTION_WORDS[segment.motion][0]),
        ("count", "how many things are there ?", NUMBERS[len(segment.scene.things)]),
        ("ground", "what colour is the background ?", segment.scene.ground),
    ]


def _order(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    names = [_name(segment.scene.things[0]) for segment in segments]
    shown = [_name(thing) for segment in segments for thing in segment.scene.things]
    once = [name for name in names if shown.count(name) == 1]
    if len(once) < 2:
        return []
    first, last = once[0], once[-1]
    one, two = sorted((first, last))
    span = {"start_s": segments[0].start_s, "end_s": segments[-1].end_s}
    return [
        {**span, "kind": "order", "question": f"what comes first , the {one} or the {two} ?", "answer": first}
    ]


def _name(thing: Thing) -> str:
    return f"{COLOUR_WORDS[thing.colour][0]} {SHAPE_WORDS[thing.shape][0]}"
