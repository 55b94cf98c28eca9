"""Corruptors by the scene graph of a text. May import `common`, `loading` and the corruptors beside this folder."""
