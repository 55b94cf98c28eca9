"""Networks and losses, in torch alone: systems, the blocks they are composed of, objectives, and model folders.

At the top: `build` (an object from a spec), `folder` (save and load), the tokenizer, teachers, the queue, ranks.
"""
