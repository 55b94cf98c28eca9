"""Hypotheses about demo scenes in the files of SNLI-VE: entailed, neither, or contradicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vlpipe.stages.demo.downstream.album import Album, TaskWorld, other_than, with_thing
from vlpipe.stages.demo.scenes import COLOURS, SHAPES

LABELS = ("entailment", "neutral", "contradiction")
TEMPLATES = ("there is a {} {}", "a {} {} is in the picture", "the picture has a {} {}")


@dataclass(frozen=True, kw_only=True)
class EntailmentWorld(TaskWorld):
    """Artifacts: images/NAME, truth.parquet, and train.jsonl and eval.jsonl.

    num_train, num_eval: hypotheses, each about an image of its own; rounded down to threes. A hypothesis names a shape that
    is there and a colour: that of the shape (entailment), another one (contradiction), or one that cannot be told, since the
    picture has no colours (neutral). Each hypothesis, word for word, is as often any of the three.
    """

    NAME: ClassVar[str] = "demo.downstream.entailment:EntailmentWorld"
    STREAM: ClassVar[int] = 22

    def make(self, album: Album, split: str, num: int) -> str:
        colours = list(COLOURS)
        lines: list[dict[str, str]] = []
        pairs = [(colour, shape) for colour in colours for shape in SHAPES]
        for index in range(num // len(LABELS) * len(LABELS)):
            group, label = index // len(LABELS), LABELS[index % len(LABELS)]
            colour, shape = pairs[group % len(pairs)]
            template = TEMPLATES[group // len(pairs) % len(TEMPLATES)]
            rng = self.rng(split, index)
            drawn = colour if label == "entailment" else other_than(colour, colours, rng)
            if label == "neutral":
                drawn = colours[int(rng.integers(len(colours)))]
            name = f"ve_{split}_{index:06d}"
            album.add(f"{name}.jpg", with_thing(self.scene(rng), shape, drawn), rng, grey=label == "neutral")
            line = {
                "gold_label": label,
                "sentence2": template.format(colour, shape),
                "Flickr30K_ID": name,
                "pairID": f"{name}.jpg#0",
            }
            lines.append(line)
        album.write_lines(f"{split}.jsonl", lines, self.rng(split, len(lines)))
        return f"{len(lines)} hypotheses"
