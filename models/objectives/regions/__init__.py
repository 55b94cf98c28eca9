"""Objectives on regions of single systems; those that several share are a level above."""
