"""Corruptors of single systems of images and texts. May import `common`, `loading` and the corruptors beside this folder."""
