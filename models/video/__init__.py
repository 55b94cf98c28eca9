"""CNNs that features of videos are extracted with: S3D, ResNet, ResNeXt-101 3D, and the vocabulary of S3D's text part.

Imports only weights.
"""
