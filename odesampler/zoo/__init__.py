"""Embedded, really trained models, with the scripts that made them.

`models` loads them by name. `unet` is their network, `weights` reads and writes it, `training` trains it on any array
of images; `train_digits` and `train_emoji` make the models that ship with the package, and measure them.
"""
