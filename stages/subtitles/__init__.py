"""Subtitle files of all known formats to cues.

May import no other room.
"""
