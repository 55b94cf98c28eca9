"""Systems that learn from a pretext task on images: positions, colours, what is hidden or comes next (CPC, jigsaw, ...).

Imports what `vlpipe.models.systems` imports.
"""
