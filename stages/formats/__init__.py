"""Image file formats: opens files, names them by their first bytes, finds truncated files and damaged JPEGs.

Imports no other stage folder; `common.pixels` decodes with it.
"""
