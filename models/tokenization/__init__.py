"""Pipelines of the `tokenizers` library that `models.tokenizer` wraps: WordPiece, byte-level BPE, special tokens.

Imports no other part of models.
"""
