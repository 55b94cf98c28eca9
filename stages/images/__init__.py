"""Untrusted image files: check, decode in a sandbox, resize, and build rows.

May import `common`.
"""
