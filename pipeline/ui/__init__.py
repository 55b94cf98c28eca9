"""`vlpipe ui`: a local web page over roots. Answers come from `inspect`; the page's files are in `static`.

Imported by `cli`. May import `inspect` and what lies below it.
"""
