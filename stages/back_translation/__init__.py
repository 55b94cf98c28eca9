"""Texts said in other words, by translation into another language and back. May import `common`, `inference`."""
