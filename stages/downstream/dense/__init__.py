"""Segmentation and detection by finetuned encoders: masks of pictures, mean IoU, AP.

May import what `downstream` imports.
"""
