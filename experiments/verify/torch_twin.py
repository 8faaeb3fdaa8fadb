"""An independent PyTorch implementation of every network, built from the same config fields as the JAX one.

JAX is compared with it, in values and in speed. Its tensors have the names and shapes of the PyTorch repositories, and
it does their arithmetic step by step (expand, activate, view, grouped 1x1 convolution).

The repositories fail on today's PyTorch in two places, which are different here: residual sums are out of place, and
the noise of `noise_resnet` is a buffer that is not part of the state_dict, as on their GPUs.

Layouts are PyTorch's: images [b, c, h, w]; noise masks [1, c or 1, num_masks, h, w], or [c, h, w] in `noise_resnet`,
where they are already multiplied by the level. The behaviour is that of michaelklachko/pnn.pytorch@08865db (mk),
juefeix/pnn.pytorch@12fdc44 (jf) and juefeix/pnn.pytorch.update@b9513ff (jfu).
"""

import math

import torch
from torch import nn
from torch.nn import functional

from pnn_jax.errors import InputError

# In place exactly where mk utils.py:69-87 is: it decides memory and speed, not values.
ACTIVATIONS = {
    'relu': nn.ReLU,
    'lrelu': lambda: nn.LeakyReLU(inplace=True),
    'prelu': nn.PReLU,
    'rrelu': lambda: nn.RReLU(inplace=True),
    'elu': lambda: nn.ELU(inplace=True),
    'selu': lambda: nn.SELU(inplace=True),
    'tanh': nn.Tanh,
    'sigmoid': nn.Sigmoid,
}
POOLINGS = {'max': nn.MaxPool2d, 'avg': nn.AvgPool2d}
MASK_FILLERS = {'uniform': lambda mask: mask.uniform_(-1, 1), 'normal': lambda mask: mask.normal_()}
PADDING = {1: 0, 3: 1, 5: 1, 7: 3}
STAGES = ((1, 1), (2, 2), (4, 2), (8, 2))  # (width multiple, stride) of the four stages of every ResNet here


def windows(size: int, kernel: int, stride: int, padding: int) -> int:
    """Length of a map after a convolution or pooling."""
    return (size + 2 * padding - kernel) // stride + 1


class MaskedCombination(nn.Module):
    """Noise masks, optional activation, (grouped) 1x1 convolution, batch norm, activation; optionally a
    second mixing 1x1.

    With `normalise_maps` every perturbed map passes a batch norm and the activation before the convolution:
    the stem of the authors' answer (jfu models.py:75-84).
    """

    def __init__(self, inputs, outputs, size, masks, level, activation, activate, normalise_maps, model):
        super().__init__()
        if masks > 1 and outputs % inputs:
            raise InputError(f'num_masks={masks} needs outputs divisible by inputs, got {outputs} and {inputs}')
        noise = torch.empty(1, 1 if model.share_masks else inputs, masks, size, size)
        self.noise = nn.Parameter(MASK_FILLERS[model.noise_type](noise), requires_grad=model.trainable_masks)
        self.level, self.activate = level, activate
        self.act = ACTIVATIONS[activation]()
        combine = nn.Conv2d(inputs * masks, outputs, 1, groups=inputs if masks > 1 else 1)
        normalised = [nn.BatchNorm2d(inputs * masks), self.act] if normalise_maps else []
        self.layers = nn.Sequential(*normalised, combine, nn.BatchNorm2d(outputs), self.act)
        if model.mix_channels:
            self.mix_layers = nn.Sequential(nn.Conv2d(outputs, outputs, 1), nn.BatchNorm2d(outputs), self.act)
        self.out_size = size

    def forward(self, x):
        perturbed = x[:, :, None] + self.noise * self.level
        if self.activate:
            perturbed = self.act(perturbed)
        y = self.layers(perturbed.flatten(1, 2))
        return self.mix_layers(y) if hasattr(self, 'mix_layers') else y


class PlainConvolution(nn.Module):
    """Convolution, batch norm, activation."""

    def __init__(self, inputs, outputs, size, kernel, activation):
        super().__init__()
        stride = 2 if kernel == 7 else 1
        self.act = ACTIVATIONS[activation]()
        convolution = nn.Conv2d(inputs, outputs, kernel, stride, PADDING[kernel], bias=kernel == 1)
        self.layers = nn.Sequential(convolution, nn.BatchNorm2d(outputs), self.act)
        self.out_size = windows(size, kernel, stride, PADDING[kernel])

    def forward(self, x):
        return self.layers(x)


def inner_layer(model, inputs, outputs, size):
    """Any layer but the first."""
    if model.layer == 'conv':
        return PlainConvolution(inputs, outputs, size, model.kernel_size, model.activation)
    return MaskedCombination(
        inputs, outputs, size, model.num_masks, model.noise_level, model.activation, True, False, model
    )


def first_layer(model, inputs, outputs, size):
    if model.stem_layer == 'conv':
        return PlainConvolution(inputs, outputs, size, model.stem_kernel_size, model.activation)
    level = model.noise_level * model.stem_noise_scale
    return MaskedCombination(
        inputs,
        outputs,
        size,
        model.num_masks,
        level,
        model.activation,
        model.activate_after_noise,
        False,
        model,
    )


def answer_first_layer(model, inputs, outputs, size):
    """jfu models.py:247-254: five times num_filters masks of twenty times the level; sigmoid whatever the
    config says."""
    if model.stem_layer == 'conv':
        return PlainConvolution(inputs, outputs, size, model.stem_kernel_size, 'sigmoid')
    level = model.noise_level * model.stem_noise_scale * 20
    masks = 5 * model.num_filters
    return MaskedCombination(inputs, outputs, size, masks, level, 'sigmoid', False, True, model)


def pools_after_stem(model):
    return model.stem_layer == 'conv' and model.stem_kernel_size == 7


def projection(inputs, outputs, stride):
    """The shortcut's 1x1 convolution and batch norm where shapes change, else None."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(layers(x) + shortcut(x)); subclasses fill `layers` and set `out_size` and `outputs`.

    On odd maps, where pooling rounds down and the strided shortcut up (the repositories stop there), the
    shortcut's last row and column are cut before its batch norm.
    """

    def forward(self, x):
        y = self.layers(x)
        if self.shortcut is not None:
            convolution, norm = self.shortcut
            x = norm(convolution(x)[:, :, : self.out_size, : self.out_size])
        return functional.relu(y + x)


class PerturbBlock(Residual):
    def __init__(self, model, inputs, width, size, stride):
        super().__init__()
        first = inner_layer(model, inputs, width, size)
        pooled = windows(first.out_size, stride, stride, 0)
        second = inner_layer(model, width, width, pooled)
        self.layers = nn.Sequential(first, POOLINGS[model.pooling](stride, stride), second)
        self.shortcut = projection(inputs, width, stride)
        self.outputs, self.out_size = width, second.out_size


class AdditiveNoise(nn.Module):
    """The CVPR'18 layer: noise of its input's full shape, relu, batch norm, 1x1 convolution (jf
    naiveresnet.py:17-37)."""

    def __init__(self, inputs, outputs, size, model):
        super().__init__()
        noise = MASK_FILLERS[model.noise_type](torch.empty(inputs, size, size)) * model.noise_level
        self.register_buffer('noise', noise, persistent=False)
        self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1))

    def forward(self, x):
        return self.layers(x + self.noise)


class NoiseBlock(Residual):
    def __init__(self, model, inputs, width, size, stride):
        super().__init__()
        self.outputs, self.out_size = width, windows(size, stride, stride, 0)
        self.layers = nn.Sequential(
            AdditiveNoise(inputs, width, size, model),
            nn.MaxPool2d(stride, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            AdditiveNoise(width, width, self.out_size, model),
            nn.BatchNorm2d(width),
        )
        self.shortcut = projection(inputs, width, stride)


class NoiseBottleneck(Residual):
    def __init__(self, model, inputs, width, size, stride):
        super().__init__()
        self.outputs, self.out_size = 4 * width, windows(size, stride, stride, 0)
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            AdditiveNoise(width, width, size, model),
            nn.MaxPool2d(stride, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, self.outputs, 1, bias=False),
            nn.BatchNorm2d(self.outputs),
        )
        self.shortcut = projection(inputs, self.outputs, stride)


class BaselineBlock(nn.Module):
    def __init__(self, model, inputs, width, size, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = projection(inputs, width, stride) or nn.Sequential()
        self.outputs, self.out_size = width, windows(size, 3, stride, 1)

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResidualNetwork(nn.Module):
    """Stem, four stages of blocks, average over what is left of the map, linear classifier."""

    def __init__(self, model, block, depths, size, num_classes):
        super().__init__()
        inputs = model.num_filters
        for number, (depth, (multiple, stride)) in enumerate(zip(depths, STAGES, strict=True), start=1):
            blocks = []
            for position in range(depth):
                step = stride if position == 0 else 1
                blocks.append(block(model, inputs, multiple * model.num_filters, size, step))
                inputs, size = blocks[-1].outputs, blocks[-1].out_size
            self.add_module(f'layer{number}', nn.Sequential(*blocks))
        self.avgpool = nn.AvgPool2d(size, stride=1)
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.linear(self.avgpool(x).flatten(1))


class BaselineNetwork(ResidualNetwork):
    def __init__(self, model, num_classes, size, channels):
        super().__init__(model, BaselineBlock, (2, 2, 2, 2), size, num_classes)
        self.conv1 = nn.Conv2d(channels, model.num_filters, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(model.num_filters)

    def stem(self, x):
        return functional.relu(self.bn1(self.conv1(x)))


class PreLayersNetwork(ResidualNetwork):
    """A ResidualNetwork whose stem is the sequence `pre_layers`, with torch's 3/2/1 max pool behind a kernel
    of 7."""

    def __init__(self, model, block, depths, num_classes, layers, size, pooled, tail=()):
        pool = [nn.MaxPool2d(3, 2, 1)] if pooled else []
        super().__init__(model, block, depths, windows(size, 3, 2, 1) if pool else size, num_classes)
        self.pre_layers = nn.Sequential(*layers, *pool, *tail)

    def stem(self, x):
        return self.pre_layers(x)


class PerturbNetwork(PreLayersNetwork):
    def __init__(self, model, num_classes, size, channels):
        first = first_layer(model, channels, model.num_filters, size)
        pooled = pools_after_stem(model)
        super().__init__(model, PerturbBlock, (2, 2, 2, 2), num_classes, [first], first.out_size, pooled)


class AnswerNetwork(PreLayersNetwork):
    def __init__(self, model, num_classes, size, channels):
        width = model.num_filters
        act = ACTIVATIONS[model.activation]()
        first = answer_first_layer(model, channels, 3 * width, size)
        tail = [nn.Conv2d(3 * width, width, 1, bias=False), nn.BatchNorm2d(width), act]
        pooled = pools_after_stem(model)
        super().__init__(model, PerturbBlock, (2, 2, 2, 2), num_classes, [first], first.out_size, pooled, tail)
        self.act = act


class NoiseNetwork(PreLayersNetwork):
    block, depths = NoiseBlock, (2, 2, 2, 2)

    def __init__(self, model, num_classes, size, channels):
        kernel, width = model.stem_kernel_size, model.num_filters
        stride = 2 if kernel == 7 else 1
        convolution = nn.Conv2d(channels, width, kernel, stride, PADDING[kernel], bias=False)
        layers = [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        size = windows(size, kernel, stride, PADDING[kernel])
        super().__init__(model, self.block, self.depths, num_classes, layers, size, kernel == 7)
        convolution.weight.requires_grad = not model.freeze_stem


class NoiseNetwork34(NoiseNetwork):
    depths = (3, 4, 6, 3)


class NoiseNetwork50(NoiseNetwork):
    block, depths = NoiseBottleneck, (3, 4, 6, 3)


class NoiseNetwork101(NoiseNetwork):
    block, depths = NoiseBottleneck, (3, 4, 23, 3)


class NoiseNetwork152(NoiseNetwork):
    block, depths = NoiseBottleneck, (3, 8, 36, 3)


class SmallNetwork(nn.Module):
    """Groups of layers, each followed by a 3/2/1 pool; then dropout, linear, batch norm, activation, dropout,
    linear."""

    layers_per_pool, hidden = 1, 128

    def __init__(self, model, num_classes, size, channels):
        super().__init__()
        sequence, make, inputs = [], first_layer, channels
        for _ in range(3):
            for _ in range(self.layers_per_pool):
                sequence.append(make(model, inputs, model.num_filters, size))
                make, inputs, size = inner_layer, model.num_filters, sequence[-1].out_size
            sequence.append(POOLINGS[model.pooling](kernel_size=3, stride=2, padding=1))
            size = windows(size, 3, 2, 1)
        self.first_layers = nn.Sequential(*sequence)
        self.linear1 = nn.Linear(inputs * size * size, self.hidden)
        self.batch_norm = nn.BatchNorm1d(self.hidden)
        self.act = ACTIVATIONS[model.activation]()
        self.linear2 = nn.Linear(self.hidden, num_classes)
        dropout = nn.Dropout(model.dropout_rate)
        self.last_layers = nn.Sequential(dropout, self.linear1, self.batch_norm, self.act, dropout, self.linear2)

    def forward(self, x):
        return self.last_layers(self.first_layers(x).flatten(1))


class DeeperSmallNetwork(SmallNetwork):
    layers_per_pool, hidden = 2, 256


NETWORKS = {
    'resnet18': BaselineNetwork,
    'perturb_resnet18': PerturbNetwork,
    'answer_resnet18': AnswerNetwork,
    'noise_resnet18': NoiseNetwork,
    'noise_resnet34': NoiseNetwork34,
    'noise_resnet50': NoiseNetwork50,
    'noise_resnet101': NoiseNetwork101,
    'noise_resnet152': NoiseNetwork152,
    'lenet': SmallNetwork,
    'cifarnet': DeeperSmallNetwork,
}


def weights_init(module: nn.Module) -> None:
    """What the audit applies after PyTorch's own initialisation (mk utils.py:51-57); the rest stays PyTorch's."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels
        module.weight.data.normal_(0, math.sqrt(2 / fan_out))
    elif isinstance(module, nn.BatchNorm2d):
        module.weight.data.fill_(1)
        module.bias.data.zero_()


def build_twin(model_config, num_classes: int, image_size: int, channels: int) -> nn.Module:
    """The network that `config.model` describes, in train mode, initialised from torch's global random state.

    Args:
        model_config: any object with the fields of `config.model`.
        num_classes, image_size, channels: of the data set; images are square.

    Raises:
        InputError: a setting without a PyTorch counterpart, or widths that a grouped combination cannot have.
    """
    from pnn_jax.pytorch.names import check_supported  # imports jax, whose memory would count as the twin's

    check_supported(model_config)
    return make_twin(model_config, num_classes, image_size, channels)


def make_twin(model_config, num_classes: int, image_size: int, channels: int) -> nn.Module:
    """As `build_twin`, for a config that is known to have a PyTorch counterpart. Does not need jax."""
    return NETWORKS[model_config.name](model_config, num_classes, image_size, channels).apply(weights_init)


def noise_buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    """The noise of `noise_resnet`, which its state_dict lacks: `layer1.0.layers.0.noise` -> [c, h, w].

    It is already multiplied by the level.
    """
    return {name: tensor for name, tensor in network.named_buffers() if name.endswith('.noise')}


def load_noise_buffers(network: nn.Module, masks: dict[str, torch.Tensor]) -> None:
    """Overwrites that noise. Raises InputError unless names and shapes are exactly the network's."""
    buffers = noise_buffers(network)
    expected, given = ({name: tuple(m.shape) for name, m in group.items()} for group in (buffers, masks))
    if expected != given:
        raise InputError(f'noise masks {sorted(given.items() ^ expected.items())} do not fit the network')
    for name, buffer in buffers.items():
        buffer.copy_(masks[name])
