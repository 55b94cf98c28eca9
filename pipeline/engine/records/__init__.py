"""Records stored in a root: keys, receipts, manifests, code hashes, forgotten rows.

Imported by the rest of `engine`. May import `engine.locking`, `steps`, `shard` and the packages below them.
"""
