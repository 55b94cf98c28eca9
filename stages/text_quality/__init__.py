"""Measures of texts that need a resource of their own, as columns for rules. May import `common`."""
