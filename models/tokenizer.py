"""Lower-casing WordPiece, as BERT's, trained on one's own corpus or from a given vocabulary.

The vocabulary file is the whole truth: equal `vocab.txt`, equal ids. Training is deterministic: the
characters are declared in sorted order first, because the `tokenizers` trainer else numbers them in hash
order and breaks ties by number.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from vlpipe.models.weights.hub import local_folder

PAD, UNK, CLS, SEP, MASK, DEC, ENC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK, DEC, ENC)


class Tokenizer:
    """Ids of the special tokens: `pad cls sep dec enc`, `unk`, `mask`. [DEC] and [ENC] are appended if
    missing (BLIP).
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        """`tokens`: the vocabulary in id order."""
        self.tokens = (*tokens, *(t for t in (DEC, ENC) if t not in tokens))
        ids = {token: i for i, token in enumerate(self.tokens)}
        if len(ids) != len(self.tokens):
            twice = [t for t, n in Counter(self.tokens).items() if n > 1]
            raise ValueError(
                f"the vocabulary must list each token once, but lists {twice[:5]} more than once"
            )
        if lacking := [t for t in SPECIAL if t not in ids]:
            raise ValueError(
                f"the vocabulary must contain the tokens {', '.join(SPECIAL)}, but lacks {', '.join(lacking)}"
            )
        self.pad, self.unk, self.cls, self.sep, self.mask, self.dec, self.enc = (ids[t] for t in SPECIAL)
        self._fast = _fast(models.WordPiece(vocab=ids, unk_token=UNK, max_input_chars_per_word=100))

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn at most `vocab_size` tokens. Characters beyond a quarter of the room, the rarest first,
        become [UNK].
        """
        fast = _fast(models.WordPiece(unk_token=UNK))
        words = _count_words(fast, texts)
        room = vocab_size - len(SPECIAL)
        if not words or room < 4:
            raise ValueError(
                f"training a tokenizer needs texts with words and vocab_size >= {len(SPECIAL) + 4}, "
                f"got {len(words)} different words and vocab_size {vocab_size}"
            )
        chars = _alphabet(words, room // 4)
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=[*SPECIAL, *chars, *(f"##{c}" for c in chars)],
            limit_alphabet=len(chars),
            show_progress=False,
        )
        repeated = ([word] * n for word, n in sorted(words.items()))
        fast.train_from_iterator(repeated, trainer)
        vocab = fast.get_vocab()
        return cls(sorted(vocab, key=vocab.__getitem__))

    @classmethod
    def from_vocab(cls, path: str | Path) -> Tokenizer:
        """From a `vocab.txt`: one token per line, the line number is the id (bert-base-uncased's works as
        it is).
        """
        return cls(Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n"))

    def save(self, folder: str | Path) -> None:
        """Write `vocab.txt`, and what lets `transformers.AutoTokenizer` open the folder."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        (target / "vocab.txt").write_text("\n".join(self.tokens) + "\n", encoding="utf-8")
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": True,
            "bos_token": DEC,
            "additional_special_tokens": [ENC],
        }
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> Tokenizer:
        """From a folder, or one on the hub: its `vocab.txt` or `tokenizer.json`, in itself or in its
        `tokenizer/`.
        """
        names = [f"{sub}{name}" for sub in ("tokenizer/", "") for name in ("vocab.txt", "tokenizer.json")]
        folder = local_folder(folder_or_hub_id, names)
        found = [folder / name for name in names if (folder / name).is_file()]
        if not found:
            raise ValueError(f"tokenizer: the folder {folder} has none of the files {', '.join(names)}")
        return cls.from_vocab(found[0]) if found[0].suffix == ".txt" else cls._from_json(found[0])

    @staticmethod
    def is_in(folder: str | Path) -> bool:
        """Whether a folder on disk holds a tokenizer; True for a hub id, which only `load` can tell."""
        path = Path(folder)
        names = [f"{sub}{name}" for sub in ("tokenizer/", "") for name in ("vocab.txt", "tokenizer.json")]
        return not path.is_dir() or any((path / name).is_file() for name in names)

    @classmethod
    def _from_json(cls, path: Path) -> Tokenizer:
        vocab = FastTokenizer.from_file(str(path)).get_vocab()
        tokens = sorted(vocab, key=vocab.__getitem__)
        if sorted(vocab.values()) != list(range(len(tokens))):
            raise ValueError(f"tokenizer: the token ids in {path} must be 0, 1, 2, ... without gaps")
        return cls(tokens)

    def encode(self, texts: Sequence[str], max_length: int) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, max_length), int64: [CLS] text [SEP] and padding.

        A text that is too long is cut and gets no [SEP]: a decoder must not learn that a cut sentence is
        finished.
        """
        ids = torch.full((len(texts), max_length), self.pad)
        mask = torch.zeros_like(ids)
        for row, encoding in enumerate(self._fast.encode_batch(list(texts), add_special_tokens=False)):
            found = [self.cls, *encoding.ids, self.sep][:max_length]
            ids[row, : len(found)] = torch.tensor(found)
            mask[row, : len(found)] = 1
        return ids, mask

    def encode_one(self, text: str, max_length: int) -> tuple[list[int], list[int]]:
        """As `encode`, of one text and without padding: (ids, for each the number of its word; -1 for special tokens)."""
        found = self._fast.encode(text, add_special_tokens=False)
        words = [-1 if word is None else word for word in found.word_ids]
        return [self.cls, *found.ids, self.sep][:max_length], [-1, *words, -1][:max_length]

    @cached_property
    def plain_ids(self) -> npt.NDArray[np.int64]:
        """Ids of all tokens that are not special: a random word of BERT's masking is one of them."""
        special = {self.pad, self.unk, self.cls, self.sep, self.mask, self.dec, self.enc}
        return np.array([i for i in range(self.vocab_size) if i not in special], np.int64)

    @property
    def start(self) -> int:
        """Id of the token before each text."""
        return self.cls

    @property
    def end(self) -> int:
        """Id of the token after each text that is not cut."""
        return self.sep

    def ids(self, text: str) -> list[int]:
        """Ids of `text` alone, without special tokens: a prompt, for example."""
        found: list[int] = self._fast.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids` without special tokens; hyphens and English contractions are closed up again."""
        special = {self.pad, self.cls, self.sep, self.unk, self.mask, self.dec, self.enc}
        text: str = self._fast.decode([int(i) for i in ids if i not in special])
        return re.sub(r"(?<=\w) (?:(-) (?=\w)|(') (?=(?:s|t|re|ve|ll|d|m)\b))", r"\1\2", text)


def _fast(model: models.Model) -> FastTokenizer:
    fast = FastTokenizer(model)
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast


def _count_words(fast: FastTokenizer, texts: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        pieces = fast.pre_tokenizer.pre_tokenize_str(fast.normalizer.normalize_str(text))
        words.update(word for word, _ in pieces)
    return words


def _alphabet(words: Counter[str], max_chars: int) -> list[str]:
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for char in word:
            counts[char] += n
    kept = sorted(counts, key=lambda c: (-counts[c], c))[:max_chars]
    return sorted(kept)
