"""Runs a plan: which step and shard is next, what is reused, what happens when a worker dies.

Imported by `inspect`, `change`, `forget`, `cli`. May import `workflow`, `stage`, `shard` and what lies below them.
"""
