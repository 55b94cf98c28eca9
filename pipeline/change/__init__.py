"""Commands that change a root: retry rejected rows, prune folders that no workflow reaches, export plain Parquet.

Imported by `cli`. May import `inspect` and what lies below it.
"""
