"""Building blocks that systems are composed of; each has the parameters that some system uses and no others.

May import nothing else of `models`.
"""
