"""What there is to write in a workflow: the stages with their parameters, a JSON Schema for editors, a first workflow.

May import `workflow`, `stage` and what is below them.
"""
