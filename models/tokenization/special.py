"""Which tokens of a vocabulary are special, and what each is for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

ROLES = ("pad", "unk", "cls", "sep", "mask", "dec", "enc")  # cls starts a text, sep ends it
# Names in transformers' files, by role; the first that is there counts.
THEIR_NAMES = {
    "pad": ("pad_token",),
    "unk": ("unk_token",),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
}
# Tokens with a usual meaning, for files that do not say.
USUAL = {
    "pad": ("[PAD]", "<pad>", "<|pad|>"),
    "unk": ("[UNK]", "<unk>"),
    # T5, which has no start token, begins what it writes with padding
    "cls": ("[CLS]", "<s>", "<|startoftext|>", "<|endoftext|>", "<pad>"),
    "sep": ("[SEP]", "</s>", "<|endoftext|>"),
    "mask": ("[MASK]", "<mask>"),
    "dec": ("[DEC]",),
    "enc": ("[ENC]",),
}
FILES = ("tokenizer_config.json", "special_tokens_map.json")
ADDED = "added_tokens.json"


def read_roles(folder: Path, vocabulary: Collection[str]) -> dict[str, str]:
    """Returns role -> token: what `tokenizer_config.json` or `special_tokens_map.json` says, else the usual tokens.

    Without a padding token, the end token pads, as in CLIP. Raises ValueError if a text has no start or no end token.
    """
    said: dict[str, Any] = {}
    for name in FILES:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            said = {**(found if isinstance(found, Mapping) else {}), **said}
    roles = {}
    for role in ROLES:
        names = [_text(said.get(theirs)) for theirs in THEIR_NAMES.get(role, ())]
        for token in (*names, *USUAL[role]):
            if token is not None and token in vocabulary:
                roles[role] = token
                break
    for role, what in (("cls", "start"), ("sep", "end")):
        if role not in roles:
            raise ValueError(
                f"tokenizer: {folder} names no {what} token ({', '.join(THEIR_NAMES[role])}), and its vocabulary has "
                f"none of {', '.join(USUAL[role])}"
            )
    return {"pad": roles["sep"], **roles}


def added_tokens(folder: Path) -> dict[str, int]:
    """Returns token -> id of the tokens that transformers keeps beside a vocabulary file: those of `added_tokens.json`, and
    `added_tokens_decoder` in `tokenizer_config.json`."""
    found: dict[str, int] = {}
    if (folder / ADDED).is_file():
        found |= json.loads((folder / ADDED).read_text(encoding="utf-8"))
    if (folder / FILES[0]).is_file():
        listed = json.loads((folder / FILES[0]).read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
        found |= {
            token: int(number) for number, value in listed.items() if (token := _text(value)) is not None
        }
    return found


def _text(value: Any) -> str | None:
    """Returns a token as transformers writes it: a string, or a dict with its `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None
