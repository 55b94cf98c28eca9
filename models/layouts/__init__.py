"""Where our weights stand in published checkpoints and transformers folders: a file per system, in rooms as in `systems`.

`table` reads them. May import `blocks`, `interface` and the systems.
"""
