"""YAML to steps: lines and bounds of the file, profiles and rounds, parameters, checks of stage classes.

Imported by `engine` and all rooms above it. May import `stage`, `files`, `shard` and what lies below them.
"""
