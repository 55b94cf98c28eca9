"""Pictures of what models do, as rows that the report shows: reconstructions, drawn images, predicted words.

May import `common`, `drawing`, `loading`, `train`.
"""
