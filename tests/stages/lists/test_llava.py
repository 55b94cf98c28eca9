"""LLaVA's conversations as rows, from their file to the answers that a model gives right."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from vlpipe.models import folder
from vlpipe.models.interface.batch import Batch, Stream
from vlpipe.models.interface.outputs import Outputs
from vlpipe.models.objectives.pairs.answer_lm import AnswerLm
from vlpipe.models.systems.image_text.llava import Llava
from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import File, ListFile, Weights
from vlpipe.pipeline.testing import dataset, run_gather, run_map
from vlpipe.stages.demo.scenes import draw_scene
from vlpipe.stages.demo.tasks.conversations import QUESTIONS, ChatWorld, conversation
from vlpipe.stages.demo.world import World
from vlpipe.stages.evaluate.masked import partnered
from vlpipe.stages.evaluate.written.answers import Answers, asked, num_right
from vlpipe.stages.lists.llava import CONVERSATIONS, LlavaConversations
from vlpipe.stages.loading.makers.language.conversation import CONVERSATIONS as READ
from vlpipe.stages.loading.makers.language.conversation import Conversation
from vlpipe.stages.loading.rows import Row

SAID = [
    {"from": "human", "value": "<image>\nwhat is it ?"},
    {"from": "gpt", "value": "a dog "},
    {"from": "human", "value": "where ?"},
    {"from": "gpt", "value": "left"},
]


@pytest.fixture
def stage(tmp_path: Path, picture: Callable[..., bytes]) -> Callable[..., LlavaConversations]:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "images" / name).write_bytes(picture())

    def make(entries: Any) -> LlavaConversations:
        (tmp_path / "chat.json").write_text(json.dumps(entries))
        listed = ListFile(path=str(tmp_path / "chat.json"))
        return LlavaConversations(images=File(path=str(tmp_path / "images")), conversations=listed)

    return make


def test_a_row_per_conversation(stage: Callable[..., LlavaConversations]) -> None:
    entries = [
        {"id": "1", "image": "b.jpg", "conversations": SAID},
        {"id": "2", "conversations": SAID},
        {"id": "3", "image": "a.jpg", "conversations": SAID[:2]},
        {"id": "4", "image": "a.jpg", "conversations": SAID[2:]},
    ]
    made = stage(entries)
    out = run_map(made, pa.concat_tables(made.rows()))
    assert not out.rejects
    rows = out.table.to_pylist()
    assert [row["url"] for row in rows] == ["b.jpg", "a.jpg", "a.jpg"]
    assert rows[0]["conversations"] == [
        {"question": "what is it ?", "answer": "a dog"},
        {"question": "where ?", "answer": "left"},
    ]
    assert [[t["text"] for t in row["texts"]] for row in rows] == [["a dog", "left"], ["a dog"], ["left"]]
    assert CONVERSATIONS == READ
    assert len({row["id"] for row in rows}) == 3


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "wanted a list of conversations, got dict"),
        ([{"image": "a.jpg", "conversations": SAID[1:]}], r"\[0\]: wanted turns of human and gpt"),
        ([{"image": "a.jpg", "conversations": SAID[:3]}], r"\[0\]: wanted turns of human and gpt"),
        ([{"image": "a.jpg"}], "conversations"),
        ([{"image": "a.jpg", "conversations": [{"from": "human"}, {"from": "gpt"}]}], "value"),
    ],
)
def test_what_is_wrong_is_said(stage: Callable[..., LlavaConversations], entries: Any, said: str) -> None:
    made = stage(entries)
    with pytest.raises(VlpipeError, match=said):
        list(made.rows())


def test_the_demo_world_asks_about_its_scenes(tmp_path: Path) -> None:
    small = {"num_web": 4, "num_human": 5, "num_eval": 3}
    plain, found = (
        run_gather(cls(seed=3, **small), [], tmp_path / cls.__name__).artifacts  # type: ignore[arg-type]
        for cls in (World, ChatWorld)
    )
    for name in ("human_train.json", "human_eval.json"):
        assert (plain / name).read_bytes() == (found / name).read_bytes()
    chats = json.loads((found / "human_eval_chat.json").read_text())
    captions = json.loads((found / "human_eval.json").read_text())["annotations"]
    assert [chat["image"] for chat in chats] == [f"human_eval_{k:06d}.jpg" for k in range(3)]
    for index, chat in enumerate(chats):
        asked_ = [one["value"] for one in chat["conversations"][::2]]
        assert asked_[0].startswith("<image>\n")
        kinds = {q: k for k, q in QUESTIONS.items()}
        answers = {
            kinds[q.removeprefix("<image>\n")]: one["value"]
            for q, one in zip(asked_, chat["conversations"][1::2], strict=True)
        }
        assert len(answers) == 3
        scene = draw_scene(np.random.default_rng([3, 2, index]), 0.0)
        truth = scene.things[0]
        for kind in ("colour", "shape", "size"):
            assert answers.get(kind, getattr(truth, kind)) == getattr(truth, kind)
        assert any(truth.colour in one["caption"] for one in captions if one["image_id"] == index)
        caption = next(one["caption"] for one in captions if one["image_id"] == index)
        described = json.loads((found / "human_eval_describe.json").read_text())[index]
        assert described["image"] == chat["image"]
        assert [one["value"] for one in described["conversations"]] == [
            "<image>\nDescribe the image.",
            caption,
        ]
    assert ChatWorld(two_things=0.5).preflight() == ["two_things must be 0: questions are about one object"]


def test_all_questions_may_be_asked() -> None:
    scene = draw_scene(np.random.default_rng(0), 0.0)
    said = conversation(scene, 5, np.random.default_rng(0))
    assert {one["value"].removeprefix("<image>\n") for one in said[::2]} == set(QUESTIONS.values())


ANSWERED = [[("what ?", "a dog"), ("where ?", "left")], [("what ?", "a cat")], [("what ?", "a dog")]]


def test_the_prior_is_the_commonest_answer_to_each_question(
    tmp_path: Path, image_rows: Callable[..., pa.Table]
) -> None:
    tokenizer = Tokenizer.train_bpe(["USER: what ? ASSISTANT: a dog left cat where"] * 3, 300, "gpt2")
    torch.manual_seed(0)
    llm: dict[str, Any] = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24}
    llm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "vision_width": 16, "vision_layers": 2}
    model = Llava.from_spec({"llm": llm, **sizes, "vision_heads": 2, "max_text_length": 64}, tokenizer)
    folder.save(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model/tokenizer")
    talks = [ANSWERED[k % 3] for k in range(8)]
    column = pa.array([[{"question": q, "answer": a} for q, a in turns] for turns in talks], READ)
    table = image_rows([[] for _ in talks]).append_column(pa.field("conversations", READ), column)
    weights = Weights(path=str(tmp_path / "model"), digest="weights-digest")
    stage = Answers(model=weights, batch_size=4)
    out = run_gather(stage, [dataset(tmp_path / "rows", table)], tmp_path / "run").table.to_pylist()
    found = {one["name"]: (one["value"], one["num_rows"]) for one in out}
    num = sum(map(len, talks))
    assert found["accuracy/prior"] == (pytest.approx((5 + 3) / num), num)  # a dog 5 of 8 times, left 3 of 3
    assert {n for _, n in found.values()} == {num}
    maker = Conversation(tokenizer=tokenizer, max_length=64)
    items = [
        maker(Row("r", 0, [], {"conversations": column[k]}), "", np.random.default_rng(0)) for k in (0, 1)
    ]
    questions = list(asked(maker.collate(items)))
    assert [tokenizer.decode(list(q)) for q, _ in questions] == [
        "USER: what ? ASSISTANT:",
        "USER: where ? ASSISTANT:",
        "USER: what ? ASSISTANT:",
    ]
    assert [tokenizer.decode(list(a)) for _, a in questions] == [" a dog", " left", " a cat"]


def test_an_answer_is_right_if_all_of_its_tokens_are() -> None:
    """A model that has learned two conversations gives their answers, but not with each other's image."""
    tokenizer = Tokenizer.train_bpe(["USER: what ? ASSISTANT: a dog left cat where"] * 3, 300, "gpt2")
    torch.manual_seed(0)
    llm: dict[str, Any] = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48}
    llm |= {"num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.2}
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "vision_width": 16, "vision_layers": 2}
    model = Llava.from_spec({"llm": llm, **sizes, "vision_heads": 2, "max_text_length": 64}, tokenizer)
    maker = Conversation(tokenizer=tokenizer, max_length=64)
    column = pa.array([[{"question": q, "answer": a} for q, a in turns] for turns in ANSWERED[:2]], READ)
    rng = np.random.default_rng(0)
    text = maker.collate([maker(Row("r", 0, [], {"conversations": one}), "", rng) for one in column])
    batch = Batch({"text": text, "image": Stream(torch.randn(2, 3, 16, 16))}, torch.arange(2))
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        AnswerLm()(Outputs(model, batch))["lm"].total.backward()
        optimiser.step()
    out = Outputs(model.eval(), batch, grad=False)
    assert num_right(partnered(out, "text", "true")) == 3
    assert num_right(partnered(out, "text", "shuffled")) == 1  # `where ?` has one answer
