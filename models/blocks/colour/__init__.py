"""Colours: Lab from normalised pixels, bins of ab. May import what `models.blocks` may."""
