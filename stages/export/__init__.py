"""Export for other tools: webdataset tars, dataset folders of Hugging Face, models for transformers.

May import `common`, `filter`, `formats`.
"""
