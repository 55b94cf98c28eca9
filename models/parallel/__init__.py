"""How one model is trained by several processes: shards of weights, gradients and moments, and parts of layers.

May import `blocks`, `experts`, `distributed` and `interface`.
"""
