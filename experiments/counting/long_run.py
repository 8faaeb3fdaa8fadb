"""A run of minutes that shows what the audit saw: LeNet without noise, 100 epochs, then counted with batches of 10.

Claim: the more epochs, the higher the maximum of the smoothed accuracy, while the exact accuracy stays what it is. The
learning rate stays high, so that accuracy differs from epoch to epoch as it does in most of a long run. The audit's
example: 85.91% exact, 90.53% reported.
Ours:    python -m pnn_jax.main --config=experiments/counting/long_run.py --workdir=runs/long_run \\
         --config.data.path=FOLDER_OF_FASHION_MNIST
         python -m experiments.counting runs/long_run --batch_size=10
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 100
    config.batch_size = 50
    config.eval_batch_size = 1000
    config.model.name = 'lenet'
    config.model.num_filters = 8
    config.model.layer = 'conv'
    config.model.kernel_size = 1
    config.model.stem_layer = 'conv'
    config.model.dropout_rate = 0.0
    config.data.source = 'idx'
    config.data.train_examples = 1_000
    config.data.augment = 'none'
    config.data.mean = (0.286,)
    config.data.std = (0.353,)
    config.optimizer.learning_rate = 0.02
    config.schedule.milestones = ()
    config.log.tensorboard = False
    return config
