"""Log writers: one file per place that a run reports to. `pnn_jax/run/log.py` lists them."""
