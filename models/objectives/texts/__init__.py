"""Losses of finetuning on texts alone."""
