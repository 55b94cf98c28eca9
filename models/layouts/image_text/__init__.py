"""Layouts of systems that read pixels and text."""
