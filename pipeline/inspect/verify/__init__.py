"""`vlpipe verify`: compares every file of a root with its records, and names what is damaged or missing.

Imported by `change`, `forget`, `cli`. May import `inspect`, `engine` and what lies below them.
"""
