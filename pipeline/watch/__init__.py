"""What a run tells other programs while it goes on: an event log in its root, metrics for Prometheus, training curves for
TensorBoard and Weights & Biases.

May import `inspect`, `engine` and what is below them.
"""
