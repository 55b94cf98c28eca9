"""A tokenizer whose tokens are the words of a list, as HowTo100M and MIL-NCE read text."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Regex
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Split

PAD, UNK = "[PAD]", "[UNK]"
WORD = r"[\w']+"
ROLES = {"pad": PAD, "unk": UNK, "cls": PAD, "sep": PAD}  # texts have neither a start nor an end token


def pipeline(words: Sequence[str], *, lower: bool) -> FastTokenizer:
    """Returns word k of the list as id k + 1; 0 is padding, the last id is of words that are not in the list.

    Raises ValueError for a word that is listed twice, or is one of these two tokens.
    """
    ids = {word: i for i, word in enumerate([PAD, *words, UNK])}
    if len(ids) != len(words) + 2:
        raise ValueError(f"the list of words must have each word once, and neither {PAD} nor {UNK}")
    fast = FastTokenizer(WordLevel(ids, unk_token=UNK))
    if lower:
        fast.normalizer = Lowercase()
    fast.pre_tokenizer = Split(Regex(WORD), behavior="removed", invert=True)
    return fast
