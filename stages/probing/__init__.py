"""What frozen models know of labels: linear probes, neighbours, learned prompts, retrieval by image, tables over sets.

May import `common`, `evaluate`, `inference`.
"""
