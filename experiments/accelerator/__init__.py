"""Everything that is to be measured on an accelerator, in calls of ten minutes.

__main__.py    one command that runs the stages, each once, and resumes where the last call stopped
stages.py      the stages: commands of other experiments, and how long each may take
operation.py   is the perturbation operation right on this device?
"""
