"""The report of a grid, made from its records alone: Markdown with plots, and one HTML page that contains everything.

study.py        the records of a grid, and which of them collapsed
analysis.py     differences between arms, with intervals, tests and verdicts
mechanism.py    what masks are: sentences from the probes and from the arms
counted.py      one run in every way of counting, for every batch size and order that the page can show
tables.py       the tables, as pandas frames of text
charts.py       the charts, in Vega-Lite
render.py       Markdown from a template, HTML from the Markdown
templates/      every sentence of the report, and the page with its script

`python -m experiments.report --grid=fashion_mnist` writes it. What is compared is in the grid's file.
"""
