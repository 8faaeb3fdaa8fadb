"""Reported against actual: what each historical way of counting makes of the same predictions.

outcomes.py   the per-example outcomes of a run, read and checked
curves.py     how a run is recounted: its table and its plot
simulate.py   the bias of the smoothed maximum, by batch size, number of epochs and correlation
published.py  the audit's published rows with the integer division undone

`python -m experiments.counting WORKDIR` recounts a finished run. The estimators are in `pnn_jax.accounting`.
"""
