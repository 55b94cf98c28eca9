"""Systems that read words alone (BERT, GPT). Imports what `vlpipe.models.systems` imports."""
