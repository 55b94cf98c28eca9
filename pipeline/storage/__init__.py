"""Files under a root on any file system, and text and JSON that are safe to store and to print.

Imported by `shard` and all packages above it. May import `errors`.
"""
