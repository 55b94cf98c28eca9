"""Commands that change a root or copy from it: retry rejected rows, prune unused folders, export plain Parquet.

Imported by `cli`. May import `inspect` and what lies below it.
"""
