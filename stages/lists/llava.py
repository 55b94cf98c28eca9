"""Conversations about images in the JSON of LLaVA: one row per entry.

https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md:
[{id, image, conversations: [{from: human, value: "<image>\\nQUESTION"}, {from: gpt, value: ANSWER}, ...]}].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from vlpipe.pipeline.errors import VlpipeError
from vlpipe.pipeline.files import ListFile
from vlpipe.stages.lists.folder import Captioned, FolderSource, captioned_rows, wanted, with_column
from vlpipe.stages.lists.json_values import load_json

# `stages.loading.makers.language.conversation.CONVERSATIONS`
CONVERSATIONS = pa.list_(pa.struct([("question", pa.string()), ("answer", pa.string())]))
PLACE = "<image>"
Turns = list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class LlavaConversations(FolderSource):
    """Images with conversations in the column `conversations`, whose answers are the texts. conversations: the JSON file;
    images: the folder that `image` is relative to.

    The place of the image in a question, `<image>`, is taken out: the maker of conversations sets it. Entries without an
    image are left out.
    """

    conversations: ListFile
    source: str = "llava"

    NAME: ClassVar[str] = "lists.llava:LlavaConversations"
    VERSION: ClassVar[int] = FolderSource.VERSION
    MORE: ClassVar[tuple[pa.Field, ...]] = (pa.field("conversations", CONVERSATIONS),)

    def rows(self) -> Iterator[pa.Table]:
        found = list(read_conversations(self.conversations.path))
        listed = (Captioned(name, [turn["answer"] for turn in turns]) for name, turns in found)
        tables = captioned_rows(listed, source=self.source, text_source="human", limit=self.text_limit)
        yield from with_column(tables, self.MORE[0], (turns for _, turns in found))


def read_conversations(path: str) -> Iterator[tuple[str, Turns]]:
    """Yields (image file, turns) of each entry with an image. Raises VlpipeError with the position if one is invalid."""
    content = load_json(path)
    if not isinstance(content, list):
        raise VlpipeError(f"{path}: wanted a list of conversations, got {type(content).__name__}")
    for number, entry in enumerate(content):
        where = f"{path}: [{number}]"
        said = wanted(entry, "conversations", list, where)
        if entry.get("image") is not None:
            yield wanted(entry, "image", str, where), list(_turns(said, where))


def _turns(said: list[Any], where: str) -> Iterator[dict[str, str]]:
    speakers = [wanted(one, "from", str, f"{where}.conversations[{n}]") for n, one in enumerate(said)]
    if not said or speakers != ["human", "gpt"] * (len(said) // 2):
        raise VlpipeError(f"{where}: wanted turns of human and gpt, one after the other, got {speakers[:6]}")
    values = [wanted(one, "value", str, f"{where}.conversations[{n}]") for n, one in enumerate(said)]
    for question, answer in zip(values[::2], values[1::2], strict=True):
        yield {"question": question.replace(PLACE, "").strip(), "answer": answer.strip()}
