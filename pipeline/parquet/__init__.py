"""Tables and Parquet files: row groups, footers, heavy columns, ids, row conservation. Independent of steps.

Imported by `shard` and all packages above it. May import `errors`.
"""
