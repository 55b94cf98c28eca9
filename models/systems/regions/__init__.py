"""Systems that read a detector's regions and words (LXMERT, UNITER, ...). Imports what `vlpipe.models.systems` imports."""
