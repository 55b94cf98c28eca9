"""Folders that other tools wrote: webdataset tars, img2dataset output.

May import `common`, `images`, `lists`.
"""
