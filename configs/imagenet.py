"""The authors' ResNet-50 on ImageNet, with images streamed from disk. Readers of their repository asked for this.

Claim: "comparable with standard CNNs on ImageNet" (the paper's abstract). Published: no accuracy that can be
reproduced, because the ImageNet code of the repository does not run.
PyTorch: python main.py --net-type noiseresnet50 --resolution-high 224 --resolution-wide 224 --avgpool 7 --level 0.1
         (in juefeix/pnn.pytorch, which has no loader for ImageNet)
Ours:    python -m pnn_jax.main --config=configs/imagenet.py --config.data.path=<folder with train/ and val/>
"""

from configs import default


def get_config():
    config = default.get_config()
    config.num_epochs = 90
    config.batch_size = 256
    config.model.name = 'noise_resnet50'
    config.model.num_filters = 64
    config.model.stem_kernel_size = 7
    config.model.noise_level = 0.1
    config.data.source = 'stream_folder'
    config.data.name = 'imagenet2012'
    config.data.image_size = 224
    config.data.augment = 'resized_crop_flip'
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)
    config.optimizer.learning_rate = 0.1
    config.schedule.milestones = (30, 60)
    config.schedule.factor = 0.1
    config.checkpoint.every_steps = 1000
    return config
