"""The ablation: which part of a perturbative network does what? A grid of networks (rows), several runs of each.

rows.py           the networks that are compared
presets.py        how large and how long: full, reduced, smoke; the order of the runs
run_config.py     the config of one run: row + preset + seed
comparisons.toml  which rows are compared, and what difference would matter; read by comparisons.py
records.py        the file that a finished run leaves
runner.py         trains one run after another in this process
workers.py        trains several runs at once, in processes of one thread each
shared_data.py    the decoded images, shared by these processes
progress.py       the table on the screen

`python -m experiments.ablation --preset=smoke` trains a grid; `python -m experiments.report` reports it.
"""
