"""Clips and what is said in them: pooled windows of features, bags of words."""
