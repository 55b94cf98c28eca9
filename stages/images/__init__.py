"""Strangers' image files: checked, decoded in a sandbox, resized, made into rows.

May import `common`.
"""
