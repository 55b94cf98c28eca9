"""Checks untrusted image files, decodes them in a sandbox, resizes them, and builds image rows.

May import `common`, `formats`.
"""
