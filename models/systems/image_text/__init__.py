"""Systems that read pixels and words (BLIP, CLIP, ViLT, ...). Imports what `vlpipe.models.systems` imports."""
