"""Turns workflow YAML into steps: line numbers and size limits, profiles and rounds, parameters, stage class checks.

Imported by `engine` and all packages above it. May import `stage`, `files`, `shard` and what lies below them.
"""
