"""Runs units on Ray: the connection, code and files for other nodes, the scheduler, the workers.

Imported by `cli`. May import the rest of `engine`.
"""
