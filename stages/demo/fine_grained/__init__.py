"""Tests of single objects, attributes and relations, made from the truth of demo scenes.

May import the rest of `demo`; imported by none of it.
"""
