"""Corruptors that make a task harder than random draws do: whole segments of words, captions with similar words."""
