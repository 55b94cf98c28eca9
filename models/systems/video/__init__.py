"""Systems that read video and words (HowTo100M's, MIL-NCE, CBT, UniVL, VideoBERT). Imports what `systems` imports."""
