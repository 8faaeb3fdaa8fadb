"""A run of minutes that shows what the audit saw: LeNet without noise, 150 epochs, then counted with batches of 10.

Claim: the maximum of the smoothed accuracy is too high, and how much depends on the order of the test images. Seen:
81.94% exact at best; smoothed 83.37% in the stored order, and 86.7% on average over random orders. The audit's example:
85.91% exact, 90.53% reported.
Ours:    python -m pnn_jax.main --config=experiments/counting/long_run.py --workdir=runs/long_run \\
         --config.data.path=FOLDER_OF_FASHION_MNIST
         python -m experiments.counting runs/long_run --batch_size=10
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 150
    config.batch_size = 128
    config.eval_batch_size = 1000
    config.model.name = 'lenet'
    config.model.num_filters = 8
    config.model.layer = 'conv'
    config.model.kernel_size = 1
    config.model.stem_layer = 'conv'
    config.model.dropout_rate = 0.0
    config.data.source = 'idx'
    config.data.train_examples = 2_000
    config.data.augment = 'none'
    config.data.mean = (0.286,)
    config.data.std = (0.353,)
    config.optimizer.learning_rate = 0.02
    config.log.tensorboard = False
    return config
