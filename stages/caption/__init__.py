"""CapFilt's captioner: generates synthetic captions for web images; a control that moves them to other images.

May import `common`, `endpoint`, `filter`, `inference`, `vision_language`, `web`.
"""
