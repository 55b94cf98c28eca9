"""A small server that speaks OpenAI's chat completions with all faults of real ones, for tests, the demo and benchmarks.

May import `common`, `demo`, `ground_truth`; nothing imports it.
"""
