"""HTTP as a polite and careful client: addresses, deadlines, limits per host, robots.txt, opt-outs.

May import `common`.
"""
