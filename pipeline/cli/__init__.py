"""The command line: options, printed text, progress bars. The commands themselves are functions of the packages below.

Imported by nothing. May import every other package, and `stages.report` for the report page.
"""
