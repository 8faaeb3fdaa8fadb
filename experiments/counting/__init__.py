"""Reported against actual: what each historical way of counting makes of the same predictions.

outcomes.py     the outcomes of a run, from its workdir or from its record
orders.py       the orders of the test images, because the historical ways of counting depend on the order
curves.py       how a run is recounted: its table, its plot, and what is expected over random orders
simulate.py     the bias of the smoothed maximum, by batch size, number of epochs and correlation
published.py    the audit's published rows with the integer division undone
long_run.py     the config of a run that shows in minutes what the audit saw

`python -m experiments.counting RUN` recounts a finished run. The estimators are in `pnn_jax.accounting`.
"""
