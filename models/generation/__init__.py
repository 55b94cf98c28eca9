"""Decoding of text token by token: sampling and beam search, for every model that `Generates`.

Imports only the interface.
"""
