"""Makes training batches from samples, in threads or processes, and moves them to the device.

May import `loading`, `loading.makers` and `loading.corruptors`.
"""
