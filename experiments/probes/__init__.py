"""What is a mask to a trained network? Probes that change one thing in it and count again.

changes.py    other masks, zeroed masks, and positions that are moved behind the stem
network.py    a network in which positions can be moved; exact counts; batch norm recalibrated
position.py   a linear read-out: at which position was this feature vector computed?
results.py    the file of counts that the report reads, and its table

`python -m experiments.probes RUN_DIR ... --json=FILE` probes finished runs of residual networks.
"""
