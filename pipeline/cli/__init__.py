"""The command line: options, printed text, progress bars. What a command does lies in the rooms below.

Imported by nothing. May import every other room, and `stages.report` for the report page.
"""
