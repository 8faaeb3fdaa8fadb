"""How far does a pixel reach? Effective receptive fields of networks, as initialised or trained.

influence.py   the gradient of a feature with respect to the image, and its plot

`python -m experiments.receptive_field` compares several networks.
"""
