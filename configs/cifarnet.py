"""CifarNet with perturbation layers: six layers, then two linear ones. Options are the audit's defaults.

Claim: none; a smaller network for quick comparisons. Published: none.
PyTorch: python main.py --net-type cifarnet --nfilters 64 --first_filter_size 3 --filter_size 0 --nmasks 1
Ours:    python -m pnn_jax.main --config=configs/cifarnet.py
"""

from configs import default


def get_config():
    config = default.get_config()
    config.model.name = 'cifarnet'
    config.model.num_filters = 64
    config.model.stem_layer = 'conv'
    return config
