"""Export for other tools: webdataset tars, models for transformers.

May import `common`, `filter`, `formats`.
"""
