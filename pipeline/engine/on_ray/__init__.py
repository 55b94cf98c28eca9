"""Where a run computes when it uses Ray: the connection, code and files for other nodes, the scheduler, the workers.

Imported by `cli`. May import the rest of `engine`.
"""
