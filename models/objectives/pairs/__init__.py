"""Losses of pairs of an image and a text that one system alone has."""
