"""Systems that read images alone (MAE, MoCo, BEiT, ...). Imports what `vlpipe.models.systems` imports."""
