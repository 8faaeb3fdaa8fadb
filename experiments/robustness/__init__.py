"""Does a run survive what happens to runs?

kill_test.py   a run that is killed at any moment resumes to the same bits: `python -m experiments.robustness.kill_test`
soak.py        a long run stays flat in memory and complete in its logs: `python -m experiments.robustness.soak`
"""
