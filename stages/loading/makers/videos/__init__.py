"""Makers of streams from videos and what is said in them: windows of features, raw clips, narration.

A row is a clip, or a video with a list of clips, of which `pairs` are drawn. May import what `makers` imports.
"""
