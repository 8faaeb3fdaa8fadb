"""The report of a grid, made from its records alone: Markdown with plots, and one HTML page that contains everything.

study.py        reads and checks the records of a preset
analysis.py     differences between rows, with tests and verdicts
tables.py       the tables, as pandas frames of text
figures.py      the plots
render.py       Markdown from a template, HTML from the Markdown
templates/      every sentence of the report

`python -m experiments.report --preset=reduced` writes it. Which rows are compared is in `ablation/comparisons.toml`.
"""
