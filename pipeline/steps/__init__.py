"""Steps of a run as values: a stage, its inputs, its settings for the engine. `workflow` makes them from YAML.

Imported by `workflow`, `engine` and all packages above them. May import `stage`, `files`, `shard` and what lies below them.
"""
