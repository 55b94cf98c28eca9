"""`vlpipe forget`: find rows in all files of a root, take them out, name the models that were trained on them.

Imported by `cli`. May import `inspect` and what lies below it.
"""
