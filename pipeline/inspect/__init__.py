"""Commands that read a root: status, show, why, diff, and the data of the report page.

Imported by `change`, `forget`, `cli`. May import `engine` and what lies below it.
"""
