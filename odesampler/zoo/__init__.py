"""Embedded, really trained models, with the scripts that made them.

`unet` is the network, `weights` reads and writes it, `training` trains it on any array of images, `train_digits` makes
the model that ships with the package and measures it, `quality` holds the two measures.
"""
