"""Plans and runs steps: what to run next, what to reuse, what to do when a worker dies.

Imported by `inspect`, `change`, `forget`, `cli`. May import `steps`, `stage`, `shard` and the packages below them.
"""
