"""Texts to token ids and back: BERT's WordPiece, byte-level BPE as CLIP's and GPT-2's, any pipeline of `tokenizers`.

A text becomes `[start] text [end]`. Which tokens start, end, pad and mask is read from the tokenizer's folder. Tokens with
such a meaning that stand in a text are read as plain text, so that a web page cannot place them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from vlpipe.models.tokenization import bpe, wordpiece
from vlpipe.models.tokenization.special import ADDED, FILES, added_tokens, read_roles
from vlpipe.models.tokenization.wordpiece import DEC, ENC, SPECIAL
from vlpipe.models.weights.hub import local_folder

__all__ = ["SPECIAL", "Tokenizer"]

# Files that hold a tokenizer, the first that is there counts; a BPE in two files has its merges beside it.
VOCABULARIES = ("vocab.txt", "tokenizer.json", "vocab.json")
MERGES = "merges.txt"
BERT_ROLES = dict(zip(("pad", "unk", "cls", "sep", "mask", "dec", "enc"), SPECIAL, strict=True))
THEIR_ROLES = {"pad": "pad_token", "unk": "unk_token", "mask": "mask_token"}


class Tokenizer:
    """A vocabulary, how texts are split, and special tokens. tokens: all tokens, in id order."""

    def __init__(self, fast: FastTokenizer, roles: Mapping[str, str], *, cased: bool | None = None) -> None:
        """fast: the pipeline. roles: `cls` (start), `sep` (end), `pad`, and `unk`, `mask`, `dec`, `enc` if it has them ->
        token. cased: for BERT's WordPiece, whether it keeps case; None: another kind, saved as `tokenizer.json`.

        Raises ValueError if the ids of the tokens are not 0, 1, 2, ...
        """
        vocabulary = fast.get_vocab(with_added_tokens=True)
        self.tokens = tuple(sorted(vocabulary, key=vocabulary.__getitem__))
        if sorted(vocabulary.values()) != list(range(len(self.tokens))):
            raise ValueError("tokenizer: the token ids must be 0, 1, 2, ... without gaps")
        self._fast, self._cased = fast, cased
        fast.encode_special_tokens = True  # a special token that stands in a text is text
        self._roles = dict(roles)
        self._ids = {role: vocabulary[token] for role, token in roles.items()}

    @classmethod
    def from_tokens(cls, tokens: Sequence[str], *, cased: bool = False) -> Tokenizer:
        """Returns BERT's WordPiece with these tokens, in id order; [DEC] and [ENC] (BLIP) are appended if missing.

        Raises ValueError for a token that is listed twice, and for a special token that is missing.
        """
        tokens = (*tokens, *(t for t in (DEC, ENC) if t not in tokens))
        ids = {token: i for i, token in enumerate(tokens)}
        if len(ids) != len(tokens):
            twice = [t for t, n in Counter(tokens).items() if n > 1]
            raise ValueError(
                f"the vocabulary must list each token once, but lists {twice[:5]} more than once"
            )
        if lacking := [t for t in SPECIAL if t not in ids]:
            raise ValueError(
                f"the vocabulary must contain the tokens {', '.join(SPECIAL)}, but lacks {', '.join(lacking)}"
            )
        return cls(wordpiece.pipeline(ids, cased=cased), BERT_ROLES, cased=cased)

    @classmethod
    def from_bpe(cls, tokens: Sequence[str], merges: Sequence[tuple[str, str]]) -> Tokenizer:
        """Returns CLIP's tokenizer, or GPT-2's if no token ends in `</w>`. Both pad with the end token.

        Raises ValueError if the special tokens are missing or a merge is of no tokens of the vocabulary.
        """
        style = bpe.style_of(tokens)
        if lacking := [t for t in bpe.SPECIAL[style] if t not in tokens]:
            raise ValueError(
                f"a {style} vocabulary must contain {', '.join(bpe.SPECIAL[style])}, but lacks {', '.join(lacking)}"
            )
        known = set(tokens)
        if bad := [m for m in merges if not {*m, "".join(m)} <= known]:
            raise ValueError(
                f"the merges must be of tokens of the vocabulary, but {bad[0]} is not ({len(bad)} such)"
            )
        start = bpe.START if style == "clip" else bpe.END
        return cls(
            bpe.pipeline(tokens, merges, style),
            {"pad": bpe.END, "unk": bpe.END, "cls": start, "sep": bpe.END},
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, *, cased: bool = False) -> Tokenizer:
        """Returns a WordPiece tokenizer with at most `vocab_size` tokens. Characters beyond a quarter of the room, the
        rarest first, become [UNK]. Raises ValueError for texts without words and for a `vocab_size` below 11."""
        return cls.from_tokens(wordpiece.train(texts, vocab_size, cased=cased), cased=cased)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int, style: bpe.Style) -> Tokenizer:
        """Returns a BPE tokenizer with at most `vocab_size` tokens, bytes and special tokens included.

        Raises ValueError for texts without words, and below 514 (CLIP) or 257 (GPT-2) tokens.
        """
        return cls.from_bpe(*bpe.train(texts, vocab_size, style))

    @classmethod
    def from_vocab(cls, path: str | Path, *, cased: bool = False) -> Tokenizer:
        """Returns the WordPiece of a `vocab.txt`: one token per line, the line number is the id (bert-base-uncased's works
        as it is)."""
        tokens = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        return cls.from_tokens(tokens, cased=cased)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> Tokenizer:
        """Returns the tokenizer in a folder, or in one on the hub, in itself or in its `tokenizer/`.

        Read are `vocab.txt` (WordPiece), `tokenizer.json` (any kind), or `vocab.json` with `merges.txt` (CLIP's and GPT-2's
        BPE); special tokens and case from `tokenizer_config.json`. Where tokens were added to `vocab.txt`, `tokenizer.json`
        is read, which has them. Raises ValueError if none is there or one is unusable.
        """
        names = [f"{sub}{name}" for sub in ("tokenizer/", "") for name in VOCABULARIES]
        beside = [f"{sub}{name}" for sub in ("tokenizer/", "") for name in (MERGES, ADDED, *FILES)]
        folder = local_folder(folder_or_hub_id, [*names, *beside])
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise ValueError(f"tokenizer: the folder {folder} has none of the files {', '.join(names)}")
        path = found[0]
        if path.name == "tokenizer.json":
            return cls._from_json(path)
        if path.name == "vocab.txt":
            made = cls.from_vocab(path, cased=_keeps_case(path.parent))
        else:
            made = cls._from_two_files(path)
        added = added_tokens(path.parent)
        strange = [token for token, number in added.items() if token != made._token(number)]
        if not strange:
            return made
        whole = path.with_name("tokenizer.json")
        if whole.is_file():
            return cls._from_json(whole)
        raise ValueError(
            f"tokenizer: {path.parent} adds {strange[0]!r} to the tokens of {path.name} as number {added[strange[0]]}, but "
            "has no tokenizer.json, which says where it stands; save it with a fast tokenizer of transformers"
        )

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Returns whether a folder on disk holds a tokenizer; True for a hub id, which only `load` can tell."""
        path = Path(folder)
        names = [f"{sub}{name}" for sub in ("tokenizer/", "") for name in VOCABULARIES]
        return not path.is_dir() or any((path / name).is_file() for name in names)

    @classmethod
    def _from_json(cls, path: Path) -> Tokenizer:
        try:
            fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise ValueError(f"tokenizer: {path} is not a file of the library tokenizers: {error}") from error
        fast.no_padding()
        fast.no_truncation()
        vocabulary = fast.get_vocab(with_added_tokens=True)
        added = {token.content for token in fast.get_added_tokens_decoder().values()}
        is_bert = isinstance(fast.model, models.WordPiece) and {*SPECIAL} - {DEC, ENC} <= set(vocabulary)
        if is_bert and added <= {*SPECIAL}:  # others are found in a text before it is split into words
            tokens = sorted(vocabulary, key=vocabulary.__getitem__)
            if sorted(vocabulary.values()) != list(range(len(tokens))):
                raise ValueError(f"tokenizer: the token ids in {path} must be 0, 1, 2, ... without gaps")
            return cls.from_tokens(tokens, cased=not getattr(fast.normalizer, "lowercase", True))
        return cls(fast, read_roles(path.parent, vocabulary))

    @classmethod
    def _from_two_files(cls, path: Path) -> Tokenizer:
        merges = path.with_name(MERGES)
        if not merges.is_file():
            raise ValueError(f"tokenizer: {path} has no {MERGES} beside it")
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        return cls.from_bpe(tokens, bpe.read_merges(merges.read_text(encoding="utf-8")))

    def save(self, folder: str | Path) -> None:
        """Writes `vocab.txt` (WordPiece) or `tokenizer.json`, and what lets `transformers.AutoTokenizer` open the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if self._cased is not None:
            (target / "vocab.txt").write_text("\n".join(self.tokens) + "\n", encoding="utf-8")
            config = {
                "tokenizer_class": "BertTokenizer",
                "do_lower_case": not self._cased,
                "bos_token": DEC,
                "additional_special_tokens": [ENC],
            }
        else:
            fast = FastTokenizer.from_str(self._fast.to_str())
            start, end = (self._roles[role] for role in ("cls", "sep"))
            fast.post_processor = TemplateProcessing(
                single=f"{start} $A {end}",
                pair=f"{start} $A {end} $B:1 {end}:1",
                special_tokens=[(start, self.start), (end, self.end)],
            )
            fast.save(str(target / "tokenizer.json"))
            config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": start, "eos_token": end}
            config |= {name: self._roles[role] for role, name in THEIR_ROLES.items() if role in self._roles}
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def _token(self, number: int) -> str | None:
        return self.tokens[number] if 0 <= number < len(self.tokens) else None

    def _id(self, role: str, what: str) -> int:
        if role not in self._ids:
            raise ValueError(
                f"tokenizer: this one has no {what} token; it has {', '.join(self._roles.values())}"
            )
        return self._ids[role]

    @property
    def pad(self) -> int:
        return self._id("pad", "padding")

    @property
    def unk(self) -> int:
        return self._id("unk", "unknown")

    @property
    def cls(self) -> int:
        return self._id("cls", "start")

    @property
    def sep(self) -> int:
        return self._id("sep", "end")

    @property
    def mask(self) -> int:
        return self._id("mask", "mask")

    @property
    def dec(self) -> int:
        return self._id("dec", DEC)

    @property
    def enc(self) -> int:
        return self._id("enc", ENC)

    @property
    def start(self) -> int:
        """Id of the token before each text."""
        return self.cls

    @property
    def end(self) -> int:
        """Id of the token after each text that is not cut, and between two texts."""
        return self.sep

    @cached_property
    def plain_ids(self) -> npt.NDArray[np.int64]:
        """Ids of all tokens that are not special: a random word of BERT's masking is one of them."""
        special = set(self._ids.values())
        return np.array([i for i in range(self.vocab_size) if i not in special], np.int64)

    def encode(
        self, texts: Sequence[str], max_length: int, *, keep_end: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Returns ids and mask (B, max_length), int64: start, text, end, padding.

        A text that is too long is cut and gets no end token: a decoder must not learn that a cut sentence is finished.
        keep_end: it gets one, in place of its last token (CLIP).
        """
        ids = torch.full((len(texts), max_length), self.pad)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(self._fast.encode_batch(list(texts), add_special_tokens=False)):
            found = self._cut([self.start, *encoding.ids, self.end], max_length, keep_end)
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask

    def _cut(self, ids: list[int], max_length: int, keep_end: bool) -> list[int]:
        return [*ids[: max_length - 1], self.end] if keep_end and len(ids) > max_length else ids[:max_length]

    def encode_one(
        self, text: str, max_length: int, *, keep_end: bool = False
    ) -> tuple[list[int], list[int]]:
        """As `encode`, of one text and without padding: (ids, for each the number of its word; -1 for special tokens)."""
        found = self._fast.encode(text, add_special_tokens=False)
        ids = self._cut([self.start, *found.ids, self.end], max_length, keep_end)
        words = [-1, *_words(found.word_ids), -1][:max_length]
        return ids, [*words[:-1], -1] if ids[-1] == self.end else words

    def encode_pair(self, first: str, second: str, max_length: int) -> tuple[list[int], list[int], list[int]]:
        """Returns (ids, word of each, type of each) of `[start] first [end] second [end]`; types are 0, then 1.

        If both are too long together, tokens are taken off the end of the longer one (BERT). Words count on from the first
        text to the second; -1 for special tokens. Raises ValueError if `max_length` is below 5.
        """
        if max_length < 5:
            raise ValueError(f"max_length of two texts must be at least 5, got {max_length}")
        a, b = (self._fast.encode(text, add_special_tokens=False) for text in (first, second))
        room, (num_a, num_b) = max_length - 3, (len(a.ids), len(b.ids))
        short = min(num_a, num_b, room // 2)
        num_a, num_b = (
            (short, min(num_b, room - short)) if num_a < num_b else (min(num_a, room - short), short)
        )
        words_a, words_b = _words(a.word_ids)[:num_a], _words(b.word_ids)[:num_b]
        after = max(words_a, default=-1) + 1
        ids = [self.start, *a.ids[:num_a], self.end, *b.ids[:num_b], self.end]
        words = [-1, *words_a, -1, *(w + after if w >= 0 else w for w in words_b), -1]
        return ids, words, [0] * (num_a + 2) + [1] * (num_b + 1)

    def spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the ids of `text` alone, and the characters [first, end) of the text that each token stands for."""
        found = self._fast.encode(text, add_special_tokens=False)
        return list(found.ids), list(found.offsets)

    def ids(self, text: str) -> list[int]:
        """Returns the ids of `text` alone, without special tokens: a prompt, for example."""
        found: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text of `ids` without special tokens; WordPiece closes up hyphens and English contractions again."""
        special = set(self._ids.values())
        text: str = self._fast.decode([int(i) for i in ids if i not in special])
        if self._cased is None:
            return text.replace(bpe.WORD_END, " ").strip() if self._ends_words else text
        return re.sub(r"(?<=\w) (?:(-) (?=\w)|(') (?=(?:s|t|re|ve|ll|d|m)\b))", r"\1\2", text)

    @cached_property
    def _ends_words(self) -> bool:
        return (
            isinstance(self._fast.model, models.BPE) and self._fast.model.end_of_word_suffix == bpe.WORD_END
        )


def _words(numbers: Sequence[int | None]) -> list[int]:
    return [-1 if number is None else number for number in numbers]


def _keeps_case(folder: Path) -> bool:
    """Returns whether the `tokenizer_config.json` of a WordPiece says that case is kept."""
    path = folder / FILES[0]
    return path.is_file() and json.loads(path.read_text(encoding="utf-8")).get("do_lower_case") is False
