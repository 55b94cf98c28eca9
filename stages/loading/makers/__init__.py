"""Makers: each turns a row into one sample of a stream, and samples into a `Stream`. `use: "image:Image"` names one.

A maker is picklable and holds no state; all random draws come from the generator that it is given. Import what you need
from `base`. May import `common` and `loading.rows`.
"""
