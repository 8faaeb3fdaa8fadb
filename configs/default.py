"""Every field of a config, with its default and meaning. The other files change some; flags change single fields:

python -m pnn_jax.main --config=configs/noise_masks.py --config.model.num_masks=8
"""

import ml_collections

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
MNIST_MEAN, MNIST_STD = (0.1307,), (0.3081,)


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of the weights, the order of the images, augmentation and dropout
    config.mask_seed = 0  # of the noise masks
    config.num_seeds = 1  # independent runs; run i has seed + i and mask_seed + i
    config.seeds_at_once = 1  # of these, how many one program trains; more is for small networks on GPUs and TPUs
    config.num_epochs = 150
    config.batch_size = 64  # over all devices; the last batch of an epoch may be smaller and is trained on too
    config.eval_batch_size = 500  # over all devices; does not change any result
    config.platform = 'any'  # 'cpu', 'gpu' or 'tpu': stop if jax runs on anything else
    config.steps_per_dispatch = 0  # training steps per call of the compiled program; 0: 1 on CPU, 20 elsewhere

    config.model = model = ml_collections.ConfigDict()
    model.name = 'perturb_resnet18'  # a name in pnn_jax/models/registry.py
    model.num_filters = 128  # of the first stage; in ResNets each later stage has twice as many
    model.layer = 'perturbation'  # every layer but the first: 'perturbation', 'conv', 'random_filters' or 'shift'
    model.kernel_size = 3  # with layer='conv': 1, 3, 5 or 7
    model.stem_layer = 'perturbation'  # the first layer, likewise
    model.stem_kernel_size = 3  # with stem_layer='conv'; 7 has stride 2 and, in ResNets, a max pooling after it
    model.freeze_stem = False  # noise_resnet only: the first convolution is random and not trained
    model.num_masks = 1  # per input channel (the paper's fanout)
    model.share_masks = False  # one set of masks for all channels of a layer
    model.trainable_masks = False  # masks are trained like weights
    model.redraw_masks = False  # new masks at every training step, like dropout; evaluation uses the first ones
    model.mix_channels = False  # a second 1x1 convolution in every perturbation layer
    model.noise_level = 0.5  # factor of the masks
    model.noise_type = 'uniform'  # 'uniform' or 'normal'; controls: 'flat', 'ramp' (pnn_jax/nn/noise.py)
    model.stem_noise_scale = 1.0  # noise_level is multiplied by this in the first layer
    model.activate_after_noise = False  # of the first layer, between noise and combination; later layers always do
    model.activation = 'relu'  # 'relu', 'lrelu', 'prelu', 'rrelu', 'elu', 'selu', 'tanh' or 'sigmoid'
    model.pooling = 'max'  # 'max' or 'avg'
    model.dropout_rate = 0.5  # lenet and cifarnet only
    # Of activations: 'float32' or 'bfloat16'. Parameters are always float32. What accelerators do in products, and how
    # to change that: docs/devices.md.
    model.dtype = 'float32'

    config.data = data = ml_collections.ConfigDict()
    data.source = (
        'tfds'  # 'tfds', 'folder', 'cifar', 'idx', 'digits', 'npz'; 'stream_folder' and 'stream_tfds' read from disk
    )
    data.name = 'cifar10'  # which set, for the sources 'tfds' and 'cifar'
    data.path = ''  # file or folder; '' is tfds' own default
    data.image_size = 0  # images become squares of this many pixels, as data.resize says; 0 keeps the stored size
    data.resize = 'crop'  # 'crop': the centred square is resized; 'stretch': all of the image, also if not square
    data.pad = 0  # then pad with black to this many pixels, centred (28 -> 32); 0: no padding
    data.train_examples = 0  # train on a fixed random subset of this size; 0 is all
    # Take a fixed random subset of this size out of the training set. Every epoch is then evaluated on it, and the test
    # set is read once, after the last epoch. 0: no such subset; every epoch is evaluated on the test set.
    data.validation_examples = 0
    data.cache_dir = ''  # decoded image folders; '' is ~/.cache/pnn_jax
    # 'crop_flip' (black pad 4, random crop, mirrored half of the time), 'flip' (mirrored only) or 'none'; sources that
    # are streamed also have 'resized_crop_flip'
    data.augment = 'crop_flip'
    data.mean = CIFAR_MEAN  # per channel, of pixels in [0, 1]
    data.std = CIFAR_STD

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = 'sgd'  # 'sgd' (nesterov), 'adam', 'adamw' or 'rmsprop', each as torch.optim computes it
    optimizer.learning_rate = 1e-3
    optimizer.momentum = 0.9  # sgd and rmsprop
    optimizer.beta1 = 0.9  # adam and adamw
    optimizer.beta2 = 0.999
    optimizer.eps = 1e-8  # adam, adamw and rmsprop
    # As in torch: weight_decay * parameter is added to the gradient of every parameter; adamw decays decoupled from it.
    optimizer.weight_decay = 1e-4
    optimizer.decay_masks = True  # weight decay for trained masks too, as in the audit

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = 'milestones'  # 'milestones', or 'cosine': from the learning rate to 0 at the end of the run
    schedule.warmup_epochs = 0.0  # before that, the learning rate rises linearly; may be a fraction of an epoch
    schedule.milestones = (59, 89, 119)  # epochs, counted from 0, before which the learning rate changes
    schedule.factor = 0.2  # the learning rate is multiplied by this at each milestone

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every_steps = 0  # extra checkpoints within an epoch; 0: only at the end of every epoch
    checkpoint.keep = 0  # older checkpoints to keep, besides the latest and the best

    config.log = log = ml_collections.ConfigDict()
    # How often the progress line is updated. Every update waits for the device. Only there, and at checkpoints, a run
    # notices a loss that is not finite, and one on several hosts a request to stop.
    log.every_steps = 50
    log.tensorboard = True  # write TensorBoard events
    log.plots = True  # plots of masks, confusion matrix and mistakes at the end of the run
    log.wandb = False  # report to Weights & Biases; needs the extra wandb
    log.mlflow = False  # report to MLflow; needs the extra mlflow
    return config
