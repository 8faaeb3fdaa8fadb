"""The questions that this project asks, one folder each. A folder runs as a command: `python -m experiments.NAME`.

ablation        trains a grid of networks, several runs each, and keeps a record of every run
report          turns the records of a grid into tables, plots and one HTML page
probes          changes one thing in trained networks and counts again: what is a mask?
counting        recounts the predictions of a run in each of the historical ways
single_input    how many images can one perturbation layer imitate a convolution on?
receptive_field how far does a pixel reach?
benchmark       speed and memory, beside PyTorch
verify          do JAX and PyTorch compute the same numbers?
compile         what do the compilers for TPU and GPU make of it?
robustness      does a killed run resume to the same bits? does a long run stay flat in memory?
results         what these commands produced, small and committed

Files beside the folders are shared by several of them. Nothing in `pnn_jax` imports `experiments`.
"""
