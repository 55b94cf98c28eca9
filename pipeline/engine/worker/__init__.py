"""One shard or one gather step where it is computed: files brought here, rows that fail found, results written.

Imported by the rest of `engine`. May import `engine.records`, `workflow`, `shard` and what lies below them.
"""
