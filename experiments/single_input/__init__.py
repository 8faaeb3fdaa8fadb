"""The weak step of the theory: one perturbation layer can imitate a convolution on one image, but on how many at once?

layer.py         a perturbation layer, and how its weights (and masks) are found
convolutions.py  the convolutions that it imitates
imitation.py     residuals on n images and on held-out ones, table and plot

`python -m experiments.single_input` runs it.
"""
