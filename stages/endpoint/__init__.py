"""Asks an OpenAI-compatible server about rows: requests, concurrency, recorded answers, what is wrong with a caption.

May import `common`, `formats`, `images`, `web`.
"""
