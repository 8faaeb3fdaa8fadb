"""How fast and how large, beside PyTorch.

cases.py      what is measured: rows, modes, scaling tables
sides.py      one step of ours, and one of the PyTorch twin
turns.py      processes that take turns, and the medians over turns
roofline.py   the perturbation operation alone, against the limits of the machine
show.py       results as lines, tables and a plot

`python -m experiments.benchmark --peer=torch` measures all rows.
"""
