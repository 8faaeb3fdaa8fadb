"""What surrounds a run: its folder, checkpoints, logs and plots, the record of the code, and loading a finished run."""
