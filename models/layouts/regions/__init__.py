"""Layouts of systems that read regions of a detector and text."""
