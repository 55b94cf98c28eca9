"""Generation of the rest of a text, of which the beginning is given. Li et al. 2021 (UNIMO), https://arxiv.org/abs/2012.15409."""

from __future__ import annotations

from vlpipe.models.objectives.masked_lm import MaskedLm


class NextWords(MaskedLm):
    """`seq2seq`: cross entropy in nats per generated token, from the hidden state of the one before it; and its accuracy.

    Its view needs the corruptor `image_text.fragments:Fragments` or `split_text:SplitText`, by whose target["prefix"] the
    model hides later tokens.
    """

    LOSSES = ("seq2seq",)
    TARGET = "rest"  # `Stream.places` has "next" of its own
