"""Scores of captions beside CIDEr and BLEU: ROUGE-L, and METEOR and SPICE in Java; captions as a file of COCO's results.

Imports `pipeline` and `stages.common`.
"""
