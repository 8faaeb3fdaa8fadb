"""Do JAX and PyTorch compute the same numbers? `python -m experiments.verify` prints the tables.

cases.py              a network with its tensors and batches; random ones
quantities_jax.py     logits, loss, gradients, statistics and trajectories of a case in JAX
quantities_torch.py   the same in PyTorch
compare.py            a row of errors for each quantity, in double and in single precision
golden.py             numbers that the PyTorch repositories produced, from files
repository.py         networks of a clone of such a repository
networks.py           a PyTorch network against the JAX one with the same tensors
table.py              the tables, printed and as JSON
torch_twin.py         an independent PyTorch implementation of every network
curve_match.py        one epoch of training side by side (`python -m experiments.verify.curve_match`)
"""
