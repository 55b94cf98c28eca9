"""Prompts of classes with vectors in place of words, which are learned through a frozen text encoder.

May import `interface` and `tokenizer`.
"""
