"""Tests of what retrieval hides: single attributes, objects and relations in texts, and objects that captions make up.

May import `common`, `evaluate`, `filter`, `inference`, `lists`.
"""
