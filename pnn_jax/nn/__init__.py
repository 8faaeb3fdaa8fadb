"""Layers, one concept a file. Arrays are NHWC: images are [b, h, w, c].

The compute dtype of a layer is that of its input. Parameters are stored in float32 and cast to it, so a network runs in
bfloat16 or float64 when its images are. Batch statistics are never computed below float32.

Random streams: `params` (weights) and `noise_masks` (masks) at initialisation; `dropout`, `activation` (slopes of
rrelu) and `redraw` (masks that change at every step) in training.

References to PyTorch code in these files: `mk` is michaelklachko/pnn.pytorch@08865db and `jfu` is
juefeix/pnn.pytorch.update@b9513ff.
"""
