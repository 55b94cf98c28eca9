"""What a root says of its shards: keys, receipts, manifests, hashes of code, forgotten rows.

Imported by the rest of `engine`. May import `engine.locking`, `workflow`, `shard` and what lies below them.
"""
