"""Labelled images: folders of classes, labels of captions, accuracy of a classifier.

May import `common`, `evaluate`, `inference`, `lists`, `loading`.
"""
