"""Queries over the rows of a step: pages, conditions, SQL, values of a column, histograms, heavy values of single rows.

Imported by `inspect`, `ui`, `cli`. May import `engine` and what lies below it.
"""
