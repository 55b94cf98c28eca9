"""Texts that are similar in their words: an index of tf-idf vectors, and neighbours as a column. May import `common`."""
