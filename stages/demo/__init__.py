"""The made data of the demos: scenes, noisy alt-text, films with narration, all from a seed.

May import `common`, `video`.
"""
