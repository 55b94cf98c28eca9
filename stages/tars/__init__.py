"""Reads folders written by other tools: webdataset tars, img2dataset output.

May import `common`, `formats`, `images`, `lists`.
"""
