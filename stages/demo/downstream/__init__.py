"""Made tasks about images, in the files of the published ones, with answers that no text tells without its image.

May import what `demo` imports.
"""
