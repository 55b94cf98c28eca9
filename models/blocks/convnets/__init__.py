"""Convolutional networks of systems of images alone: AlexNet, a pre-activation ResNet, a context of rows above, an encoder
and a decoder of holes. May import what `models.blocks` may, and `video.resnet`.
"""
