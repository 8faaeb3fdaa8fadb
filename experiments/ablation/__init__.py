"""The ablation: which part of a perturbative network does what? A grid of arms, several runs of each.

rows.py           the networks that grids choose from
grids/            the grids, a TOML file each: arms, comparisons, rules; some are pre-registrations
registration.py   such a file as classes, read and checked
runs.py           the runs of a grid in order, and the blinded look that may add some
run_config.py     the config of a run
records.py        the file that a finished run leaves
results.py        all records of a grid, checked
final.py          what is measured of a finished network besides
diverged.py       the record of a run that did not stay finite
plan.py           the table of `--plan`
tasks.py          from a grid to what is trained: data, configs, tasks
runner.py         trains one run after another in this process
workers.py        trains several runs at once, in processes of one thread each
shared_data.py    the decoded images, shared by these processes
progress.py       the table on the screen
rates.py          chooses learning rates from a rate search
repeat.py         compares runs that were trained again with their records, bit for bit

`python -m experiments.ablation --grid=smoke` trains a grid; `python -m experiments.report` reports it.
"""
