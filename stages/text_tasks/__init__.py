"""Texts alone: documents to pretrain on, and the tasks that BERT is finetuned for (GLUE's and SQuAD's files and metrics).

May import `clips`, `common`, `loading`, `train`, `video`.
"""
