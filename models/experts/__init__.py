"""Mixtures of experts: routers that choose experts for each token, and the feed-forward layer made of them.

May import `distributed`.
"""
