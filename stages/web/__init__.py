"""A polite and safe HTTP client: public addresses only, deadlines, limits per host, robots.txt, opt-outs.

May import `common`.
"""
