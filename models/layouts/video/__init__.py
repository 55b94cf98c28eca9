"""Layouts of systems that read video: files of their authors."""
