"""Read subtitle files of all known formats as cues.

Imports no other stage folder.
"""
