"""A root as its records tell it, without the workflow's code: steps and their progress, curves, results, a row's lineage.

Imported by `ui`. May import `engine`, what lies below it, and the files of `inspect`.
"""
