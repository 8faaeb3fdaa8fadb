"""Experiments as configs. `default.py` has every field with a comment; each other file changes some of them.

"Row" means a row of the audit's table of results. "Published" accuracies are the maximum over epochs on the test set.
"Floored" means that the audit's code truncated the accuracy of each batch, which lowers it by about 0.4 points at batch
size 16.
"""
