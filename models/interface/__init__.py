"""What every system is written against: batches, lazy outputs, objectives, capabilities, model folders.

May import nothing of `models` but `distributed` and `build`.
"""
