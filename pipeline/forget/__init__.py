"""`vlpipe forget`: finds rows in all files of a root, removes them, and reports the models that were trained on them.

Imported by `cli`. May import `inspect` and what lies below it.
"""
