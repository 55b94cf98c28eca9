"""Records stored in a root: keys, receipts, manifests, code hashes, forgotten rows.

Imported by the rest of `engine`. May import `engine.locking`, `workflow`, `shard` and the packages below them.
"""
