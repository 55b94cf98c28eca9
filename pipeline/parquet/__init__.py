"""Tables and Parquet files: row groups, footers, heavy columns, ids, row conservation. Independent of steps.

Imported by `shard` and all rooms above it. May import `errors`.
"""
