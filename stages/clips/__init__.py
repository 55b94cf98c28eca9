"""Video clips: the pairing rules of published systems for narration and video, and cheap text and frame signals.

May import `common`, `features`, `video`.
"""
