"""Training of vision-language models: the recipe, the loop, the loader, checkpoints, tokenizers.

May import `common`, `loading`.
"""
