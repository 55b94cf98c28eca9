"""Reads folders written by other tools: webdataset tars, img2dataset output, Parquet files with images.

May import `common`, `formats`, `images`, `lists`.
"""
