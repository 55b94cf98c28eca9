"""Turns workflow YAML into steps: line numbers and size limits, profiles and rounds, parameters, stage class checks.

Imported by the packages above `engine`; `engine` gets its steps as values. May import `steps` and what lies below it.
"""
