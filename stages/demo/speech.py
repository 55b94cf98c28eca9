"""Generates the narration of a demo film: about what is visible (early or late), about something else, or chatter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlpipe.stages.demo.captions import COLOUR_WORDS, GROUND_WORDS, SHAPE_WORDS, SIZE_WORDS
from vlpipe.stages.demo.film import MOTIONS, Segment
from vlpipe.stages.demo.scenes import COLOURS, SHAPES, Scene, Thing

# Motion -> phrases that complete the clause "the red circle ...". Answers to questions use the first one.
MOTION_WORDS = {
    "right": ("moves to the right", "goes right", "slides over to the right"),
    "left": ("moves to the left", "goes left", "slides over to the left"),
    "up": ("moves up", "rises", "goes up to the top"),
    "down": ("moves down", "falls", "goes down to the bottom"),
    "grows": ("grows", "gets larger", "gets bigger and bigger"),
    "shrinks": ("shrinks", "gets smaller", "gets smaller and smaller"),
    "still": ("stays where it is", "does not move", "just sits there"),
}
OPENINGS = ("now", "so", "okay", "and then", "here", "next", "you can see that", "")
CHATTER = (
    "welcome back to my channel everybody",
    "do not forget to like and subscribe",
    "i will put the link in the description below",
    "let me know in the comments what you think",
    "sorry about the noise that is my dog",
    "this one took me a long time to learn",
)
WORD_MS = (220, 380)  # min and max duration of a word
ABOUT = ("seen", "other", "chatter")


@dataclass(frozen=True, slots=True)
class Word:
    start_ms: int
    end_ms: int
    text: str


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence, with the times of its words.

    about: seen (what `segment` shows), other (something that the film does not show at that time) or chatter.
    segment: index of the segment that it is about; None unless `about` is seen.
    """

    words: tuple[Word, ...]
    about: str
    segment: int | None

    @property
    def start_ms(self) -> int:
        return self.words[0].start_ms

    @property
    def end_ms(self) -> int:
        return self.words[-1].end_ms

    @property
    def text(self) -> str:
        return " ".join(word.text for word in self.words)


def draw_speech(
    segments: Sequence[Segment], rng: np.random.Generator, lag_s: float, about_other: float, silent: float
) -> list[Utterance]:
    """Returns one utterance for most segments, about `lag_s` after its start (before it, if negative), without overlaps.

    about_other: fraction of utterances that are not about what is visible, half of them chatter; silent: fraction of
    segments without an utterance.
    """
    utterances: list[Utterance] = []
    for index, segment in enumerate(segments):
        if rng.random() < silent:
            continue
        about = str(rng.choice(ABOUT, p=(1 - about_other, about_other / 2, about_other / 2)))
        start_s = segment.start_s + lag_s + rng.uniform(-0.3, 0.3)
        start_ms = max(0, round(1000 * start_s), utterances[-1].end_ms + 50 if utterances else 0)
        words = _spoken(_sentence(segment, about, rng), start_ms, rng)
        utterances.append(Utterance(words, about, index if about == "seen" else None))
    length_ms = round(1000 * segments[-1].end_s)
    return [one for one in utterances if one.start_ms < length_ms]


def _sentence(segment: Segment, about: str, rng: np.random.Generator) -> str:
    if about == "chatter":
        return str(rng.choice(CHATTER))
    described = _another(segment, rng) if about == "other" else segment
    return f"{rng.choice(OPENINGS)} {clause(described, rng, 'the')}".strip()


def clause(segment: Segment, rng: np.random.Generator, article: str, detail: float = 0.3) -> str:
    """Returns a clause like "the large red circle moves up". detail: probability of naming the size."""
    thing = segment.scene.things[0]
    sized = rng.random() < detail and segment.motion not in ("grows", "shrinks")
    name = thing_words(thing, rng, with_size=sized)
    if article == "a" and name[0] in "aeiou":
        article = "an"
    return f"{article} {name} {rng.choice(MOTION_WORDS[segment.motion])}"


def thing_words(thing: Thing, rng: np.random.Generator, with_size: bool) -> str:
    words = [str(rng.choice(COLOUR_WORDS[thing.colour])), str(rng.choice(SHAPE_WORDS[thing.shape]))]
    return " ".join([str(rng.choice(SIZE_WORDS[thing.size])), *words] if with_size else words)


def ground_word(scene: Scene, rng: np.random.Generator) -> str:
    return str(rng.choice(GROUND_WORDS[scene.ground]))


def _another(segment: Segment, rng: np.random.Generator) -> Segment:
    """Returns the segment with another colour, shape and motion."""
    thing = segment.scene.things[0]
    colour = str(rng.choice([one for one in COLOURS if one != thing.colour]))
    shape = str(rng.choice([one for one in SHAPES if one != thing.shape]))
    motion = str(rng.choice([one for one in MOTIONS if one != segment.motion]))
    other = replace(thing, colour=colour, shape=shape)
    return replace(segment, scene=replace(segment.scene, things=(other,)), motion=motion)


def _spoken(text: str, start_ms: int, rng: np.random.Generator) -> tuple[Word, ...]:
    words = []
    for word in text.split():
        end_ms = start_ms + int(rng.integers(*WORD_MS))
        words.append(Word(start_ms, end_ms, word))
        start_ms = end_ms
    return tuple(words)
