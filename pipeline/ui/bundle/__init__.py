"""`vlpipe ui --bundle`: the page as static files, over a sample of the rows of each step.

May import the rest of `ui` and what lies below it.
"""
