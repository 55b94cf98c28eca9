"""Objectives of downstream tasks: soft answers, one of several texts.

May import `interface`.
"""
