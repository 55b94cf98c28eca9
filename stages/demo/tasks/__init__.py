"""Made tasks of texts and conversations about images, with known answers.

May import what `demo` imports.
"""
