"""BERT's WordPiece, cased or lower-cased. Training is deterministic.

The characters are declared in sorted order first, because the `tokenizers` trainer else numbers them in hash order and
breaks ties by number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, UNK, CLS, SEP, MASK, DEC, ENC = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]"
SPECIAL = (PAD, UNK, CLS, SEP, MASK, DEC, ENC)


def pipeline(vocabulary: Mapping[str, int] | None, *, cased: bool) -> Tokenizer:
    """Returns the pipeline of a vocabulary; None: of one that is still to be trained."""
    if vocabulary is None:
        fast = Tokenizer(models.WordPiece(unk_token=UNK))
    else:
        fast = Tokenizer(
            models.WordPiece(vocab=dict(vocabulary), unk_token=UNK, max_input_chars_per_word=100)
        )
    fast.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return fast


def train(texts: Iterable[str], vocab_size: int, *, cased: bool) -> list[str]:
    """Returns at most `vocab_size` tokens, in id order. Characters beyond a quarter of the room, the rarest first, become
    [UNK]. Raises ValueError for texts without words and for a `vocab_size` below 11."""
    fast = pipeline(None, cased=cased)
    words = count_words(fast, texts)
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
    fast.train_from_iterator(([word] * n for word, n in sorted(words.items())), trainer)
    vocabulary = fast.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def count_words(fast: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Returns how often each word occurs, as the pipeline splits and normalises texts."""
    words: Counter[str] = Counter()
    for text in texts:
        if fast.normalizer is not None:
            text = fast.normalizer.normalize_str(text)
        words.update(word for word, _ in fast.pre_tokenizer.pre_tokenize_str(text))
    return words


def _alphabet(words: Counter[str], max_chars: int) -> list[str]:
    counts: Counter[str] = Counter()
    for word, n in words.items():
        for char in word:
            counts[char] += n
    kept = sorted(counts, key=lambda c: (-counts[c], c))[:max_chars]
    return sorted(kept)
