"""The command line: options, printed text, progress bars. The commands themselves are functions of the rooms below.

Imported by nothing. May import every other room, and `stages.report` for the report page.
"""
