"""Tables and Parquet files: row groups, footers, heavy columns, ids, conservation of rows. Knows no step.

Imported by `shard` and all rooms above it. May import `errors`.
"""
