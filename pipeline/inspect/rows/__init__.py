"""Queries over the rows of a step: pages, conditions, values of a column, histograms, heavy values of single rows.

Imported by `ui` and `cli`. May import `engine`, what lies below it, and the files of `inspect`.
"""
