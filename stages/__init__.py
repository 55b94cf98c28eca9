"""The steps of workflows: one class per kind of step, one package per subject. `use: "PACKAGE.MODULE:CLASS"` names one.

May import `vlpipe.pipeline` and `vlpipe.models`. Packages that several others use lie below them; none import each other.
"""
