"""Parts of systems that compare two views of an image: a ResNet, batch norms over all ranks or over parts of a batch.

Imports `distributed` and `video.resnet` of models.
"""
