"""Commands that read a root: status, show, why, diff, and what the report page shows.

Imported by `change`, `forget`, `cli`. May import `engine` and what lies below it.
"""
