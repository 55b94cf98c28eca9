"""A classifier on top of any model that embeds images, of which all, some or no layers are trained.

May import `interface` and `build`.
"""
