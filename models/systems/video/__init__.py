"""Systems that read video and words (VideoBERT). Imports what `vlpipe.models.systems` imports."""
