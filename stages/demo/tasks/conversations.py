"""The demo world with conversations about its scenes: what colour, shape, size, place and background are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from vlpipe.stages.demo.scenes import Scene, draw_scene
from vlpipe.stages.demo.world import World

QUESTIONS = {
    "colour": "what colour is it ?",
    "shape": "what shape is it ?",
    "size": "how large is it ?",
    "place": "where is it ?",
    "ground": "what is the background ?",
}
INSTRUCTION = "Describe the image."


@dataclass(frozen=True, kw_only=True)
class ChatWorld(World):
    """As `World`, with artifacts in the form of LLaVA: human_train_chat.json and human_eval_chat.json, a conversation of
    `turns` questions about the object of each image with human captions, in random order; human_train_describe.json and
    human_eval_describe.json, its first caption as the answer to an instruction. Scenes have one object."""

    NAME: ClassVar[str] = "demo.tasks.conversations:ChatWorld"

    turns: Annotated[int, Field(ge=1, le=len(QUESTIONS))] = 3

    def preflight(self) -> list[str]:
        return ["two_things must be 0: questions are about one object"] if self.two_things else []

    def _write_human(self, folder: Path, name: str, num: int, stream: int) -> None:
        super()._write_human(folder, name, num, stream)
        captions: dict[int, str] = {}
        for one in json.loads((folder / f"{name}.json").read_text())["annotations"]:
            captions.setdefault(one["image_id"], one["caption"])
        chats, described = [], []
        for index in range(num):
            about = {"id": str(index), "image": f"{name}_{index:06d}.jpg"}
            scene = draw_scene(np.random.default_rng([self.seed, stream, index]), self.two_things)
            rng = np.random.default_rng([self.seed, 6, stream, index])
            chats.append({**about, "conversations": conversation(scene, self.turns, rng)})
            described.append({**about, "conversations": turn(f"<image>\n{INSTRUCTION}", captions[index])})
        (folder / f"{name}_chat.json").write_text(json.dumps(chats))
        (folder / f"{name}_describe.json").write_text(json.dumps(described))


def conversation(scene: Scene, turns: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Returns `turns` questions and answers about the first object, the first with the place of the image."""
    thing = scene.things[0]
    truth = {
        "colour": thing.colour,
        "shape": thing.shape,
        "size": thing.size,
        "place": " ".join(dict.fromkeys(thing.place)),  # "middle middle" is "middle"
        "ground": scene.ground,
    }
    found: list[dict[str, Any]] = []
    for number, kind in enumerate(rng.permutation(list(QUESTIONS))[:turns]):
        place = "<image>\n" if number == 0 else ""
        found += turn(f"{place}{QUESTIONS[kind]}", truth[kind])
    return found


def turn(question: str, answer: str) -> list[dict[str, Any]]:
    """Returns a question and its answer in the form of LLaVA."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
