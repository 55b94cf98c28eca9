"""How the rows and the model of a training step are spread over processes, and what of a recipe that leaves as it is.

May import `models` and `loading`.
"""
