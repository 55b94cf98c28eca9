"""Where our weights stand in published checkpoints and transformers folders, one file per system; `table` reads them.

May import `blocks`, `interface` and the systems.
"""
