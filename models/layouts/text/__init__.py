"""Layouts of language alone."""
