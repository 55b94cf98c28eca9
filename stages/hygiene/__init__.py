"""What is wrong with captions that models write: signals for rules, a profile per captioner, a gate before the full run.

May import `common`.
"""
