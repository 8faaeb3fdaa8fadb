"""Networks between PyTorch and JAX, exact in both directions and without PyTorch itself (only writing a .pth needs it).

names.py          what every tensor and module is called in PyTorch
layouts.py        how its values are ordered there
variables.py      to_torch, from_torch: variables of ours <-> a state_dict of NumPy arrays
constructors.py   arguments of PyTorch's constructors <-> fields of config.model
files.py          reads .pth and .safetensors files without running anything in them
checkpoints.py    finds the one network in what a file holds
architecture.py   which network it is: fields of config.model from names, shapes and saved modules
convert.py        a file -> a workdir, a workdir -> a file
"""
