"""Layouts of vision alone."""
