"""What language models read: texts of which the start is given, conversations, tiles; tokenizers without a start token."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from vlpipe.models.tokenizer import Tokenizer
from vlpipe.pipeline.errors import VlpipeError
from vlpipe.stages.loading.augment import Augmentation
from vlpipe.stages.loading.makers.base import IGNORE
from vlpipe.stages.loading.makers.language.conversation import CONVERSATIONS, Conversation, Instruction
from vlpipe.stages.loading.makers.language.prefix_text import PrefixText
from vlpipe.stages.loading.makers.language.tiles import Tiles, best_grid
from vlpipe.stages.loading.rows import Row

RNG = np.random.default_rng(0)
TEXTS = ["a red circle on the left", "one"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train_bpe(TEXTS * 3, 290, "gpt2")


def test_a_text_is_cut_between_words(tokenizer: Tokenizer) -> None:
    maker = PrefixText(tokenizer=tokenizer, max_length=40)
    seen = set()
    for seed in range(40):
        item = maker(None, TEXTS[0], np.random.default_rng(seed))
        first, rest = tokenizer.decode(item["extra/prefix"]), tokenizer.decode(item["data"])
        assert f"{first} {rest}" == TEXTS[0]
        assert item["extra/prefix"][-1] == item["data"][-1] == tokenizer.end
        assert item["data"][0] == tokenizer.start
        seen.add(len(first.split()))
    assert seen == {1, 2, 3, 4, 5}
    again = maker(None, TEXTS[0], np.random.default_rng(39))
    assert np.array_equal(again["data"], item["data"])


def test_a_prefix_is_no_longer_than_there_is_room_for(tokenizer: Tokenizer) -> None:
    maker = PrefixText(tokenizer=tokenizer, max_length=4, prompt=TEXTS[0])
    item = maker(None, TEXTS[0], np.random.default_rng(0))
    assert len(item["extra/prefix"]) == 4
    assert item["extra/prefix"][-1] == tokenizer.end


def test_prefixes_of_different_length_are_padded(tokenizer: Tokenizer) -> None:
    maker = PrefixText(tokenizer=tokenizer, max_length=40, prompt="say: ")
    items = [maker(None, text, np.random.default_rng(3)) for text in TEXTS]
    assert tokenizer.decode(items[1]["extra/prefix"]).strip() == "say:"  # a text of one word is not cut
    assert tokenizer.decode(items[1]["data"]) == "one"
    stream = maker.collate(items)
    lengths = [len(item["extra/prefix"]) for item in items]
    assert stream.extra["prefix_mask"].sum(1).tolist() == lengths
    assert stream.extra["prefix"].shape == stream.extra["prefix_mask"].shape == (2, max(lengths))
    assert "prompt" not in stream.extra
    assert stream.places["next"].numel() == sum(len(item["data"]) - 1 for item in items)


def test_a_tokenizer_without_a_start_token_starts_with_padding(tmp_path: Path) -> None:
    """T5's has <pad>, </s> and <unk>."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4}
    fast = Fast(models.WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    fast.save(str(tmp_path / "tokenizer.json"))
    config = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = Tokenizer.load(tmp_path)
    assert (found.start, found.end, found.pad) == (0, 1, 0)
    assert found.encode_one("a red", 9)[0] == [0, 3, 4, 1]


def talk(*turns: tuple[str, str]) -> Row:
    column = pa.array([[{"question": q, "answer": a} for q, a in turns]], CONVERSATIONS)
    return Row("row0", 0, [], {"conversations": column[0]})


def test_answers_are_learned_and_questions_are_not(tokenizer: Tokenizer) -> None:
    maker = Conversation(tokenizer=tokenizer, max_length=99)
    item = maker(talk(("a circle", "red"), ("on the", "left")), "", RNG)
    ids, learned = item["data"], item["target/ids"] != IGNORE
    whole = "USER: a circle ASSISTANT: redUSER: on the ASSISTANT: left"
    assert tokenizer.decode(ids) == whole
    assert tokenizer.decode(ids[learned]) == " red left"
    assert ids[learned].tolist().count(tokenizer.end) == 2
    assert np.array_equal(item["target/ids"][learned], ids[learned])
    assert [tokenizer.decode(ids[item["extra/turn"] == k]) for k in (1, 2)] == [" red", " left"]
    assert (ids[0], item["extra/image_at"]) == (tokenizer.start, 1)


def test_the_image_stands_where_the_template_says(tokenizer: Tokenizer) -> None:
    maker = Conversation(tokenizer=tokenizer, max_length=99, first="USER: <image>\n{question} ASSISTANT:")
    item = maker(talk(("a circle", "red")), "", RNG)
    at = int(item["extra/image_at"])
    assert tokenizer.decode(item["data"][:at]) == "USER: "
    assert tokenizer.decode(item["data"][at:]) == "\na circle ASSISTANT: red"
    with pytest.raises(ValueError, match=r"first must have <image> and \{question\} once, got 'USER'"):
        Conversation(tokenizer=tokenizer, first="USER")


def test_a_long_conversation_is_cut_and_has_no_end(tokenizer: Tokenizer) -> None:
    row = talk(("a circle", "red"), ("on the", "left"))
    whole = Conversation(tokenizer=tokenizer, max_length=99)(row, "", RNG)
    cut = Conversation(tokenizer=tokenizer, max_length=len(whole["data"]) - 1)(row, "", RNG)
    assert np.array_equal(cut["data"], whole["data"][:-1])
    assert cut["data"][-1] != tokenizer.end
    stream = Conversation(tokenizer=tokenizer).collate([whole, cut])
    assert stream.places["ids"].numel() == int((stream.target["ids"] != IGNORE).sum())
    assert stream.extra["turn"][1, -1] == 0
    assert stream.target["ids"][1, -1] == IGNORE
    with pytest.raises(VlpipeError, match="row row0 has a question or an answer that is null"):
        Conversation(tokenizer=tokenizer)(talk(), "", RNG)


def test_an_instruction_asks_for_the_text(tokenizer: Tokenizer) -> None:
    maker = Instruction(tokenizer=tokenizer, max_length=99, instructions=("one", "on the left"))
    row = Row("row0", 0, [TEXTS[0]], {})
    said = {tokenizer.decode(maker(row, TEXTS[0], np.random.default_rng(s))["data"]) for s in range(20)}
    assert said == {f"USER: {i} ASSISTANT: {TEXTS[0]}" for i in ("one", "on the left")}


def picture(height: int, width: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_tiles_of_a_batch(tokenizer: Tokenizer) -> None:
    """A wide picture has two tiles beside each other, a tall one two below each other, and lines without padding."""
    maker = Tiles(size=16, patch_size=4, grids=((1, 2), (2, 1)))
    rows = [Row(str(i), i, [], {"image": picture(*size)}) for i, size in enumerate([(16, 32), (64, 20)])]
    items = [maker(row, "", RNG) for row in rows]
    assert [item["data"].shape for item in items] == [(3, 3, 16, 16)] * 2
    wide = items[0]["extra/order"]
    assert wide[:16].tolist() == list(range(2, 18))  # the whole
    lines = wide[16:].reshape(4, 9)
    assert lines[:, -1].tolist() == [1] * 4
    assert lines[0, :-1].tolist() == [18, 19, 20, 21, 34, 35, 36, 37]
    tall = items[1]["extra/order"][16:]
    assert (tall == 1).sum() == 8  # 8 lines of 4 patches; 2 of their 4 columns are of padding in part only
    stream = maker.on_device(maker.collate(items))
    assert stream.data.shape == (2, 3, 3, 16, 16)
    assert stream.data.dtype == torch.float32
    assert stream.extra["order"].shape == (2, max(len(item["extra/order"]) for item in items))
    assert best_grid(100, 1000, ((1, 2), (2, 1), (1, 3)), 16) == (1, 3)
    with pytest.raises(ValueError, match="leave out `augment`"):
        Tiles(size=16, patch_size=4, grids=((1, 2),), augment=Augmentation(flip=True))
