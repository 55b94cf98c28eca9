"""Byte-level BPE as CLIP and GPT-2 have it. No character is unknown: each byte has a token.

CLIP (Radford et al. 2021): lower case, words end in `</w>`, digits alone. GPT-2 (Radford et al. 2019): case and the space
before a word are kept. The vocabulary is built as theirs: bytes, for CLIP bytes that end a word, merges, special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from vlpipe.models.tokenization.wordpiece import count_words

Style = Literal["clip", "gpt2"]
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
SPECIAL: dict[Style, tuple[str, ...]] = {"clip": (START, END), "gpt2": (END,)}
CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
# Bytes in OpenAI's order: printable ones as themselves, then the others, which `ByteLevel` writes as other characters.
PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]


def byte_tokens() -> list[str]:
    """Returns the 256 tokens of single bytes, in the order of OpenAI's vocabularies."""
    return [*map(chr, PRINTABLE), *(chr(256 + n) for n in range(256 - len(PRINTABLE)))]


def pipeline(tokens: Sequence[str], merges: Sequence[tuple[str, str]], style: Style) -> Tokenizer:
    """Returns the pipeline of a vocabulary in id order and of its merges, the first to apply first."""
    ids = {token: i for i, token in enumerate(tokens)}
    is_clip = style == "clip"
    ends = {"end_of_word_suffix": WORD_END, "unk_token": END} if is_clip else {"end_of_word_suffix": ""}
    fast = Tokenizer(
        models.BPE(vocab=ids, merges=list(merges), continuing_subword_prefix="", fuse_unk=False, **ends)
    )
    if is_clip:
        fast.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        fast.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    else:
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return fast


def style_of(tokens: Iterable[str]) -> Style:
    """Returns CLIP's style for a vocabulary with tokens that end a word, else GPT-2's."""
    return "clip" if any(token.endswith(WORD_END) for token in tokens) else "gpt2"


def train(texts: Iterable[str], vocab_size: int, style: Style) -> tuple[list[str], list[tuple[str, str]]]:
    """Returns at most `vocab_size` tokens, in id order, and the merges. Equal texts give equal vocabularies.

    Raises ValueError for texts without words and for a `vocab_size` without room for the bytes.
    """
    singles = byte_tokens()
    if style == "clip":
        singles += [f"{token}{WORD_END}" for token in singles]
    smallest = len(singles) + len(SPECIAL[style])
    words = count_words(pipeline([*singles, *SPECIAL[style]], [], style), texts)
    if not words or vocab_size < smallest:
        raise ValueError(
            f"training a {style} tokenizer needs texts with words and vocab_size >= {smallest}, "
            f"got {len(words)} different words and vocab_size {vocab_size}"
        )
    # The bytes come first, in a fixed order: the trainer numbers others in hash order, and breaks ties by number.
    ends: dict[str, Any] = {"end_of_word_suffix": WORD_END} if style == "clip" else {}
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL[style]), special_tokens=singles, show_progress=False, **ends
    )
    learner = Tokenizer(models.BPE(**ends))
    learner.train_from_iterator(([word] * n for word, n in sorted(words.items())), trainer)
    merges = [_pair(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    made = ("".join(merge) for merge in merges)  # different merges may make the same token
    return list(dict.fromkeys([*singles, *made, *SPECIAL[style]])), merges


def _pair(merge: str | Sequence[str]) -> tuple[str, str]:
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def read_merges(text: str) -> list[tuple[str, str]]:
    """Returns the merges of a `merges.txt`: a pair per line, after a first line that states the version."""
    lines = text.split("\n")
    return [_pair(line) for line in lines[lines[0].startswith("#") :] if line.strip()]
