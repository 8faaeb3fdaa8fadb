"""PyTorch checkpoints to workdirs and back.

python -m pnn_jax.convert model.pth runs/model --config=configs/shared_masks.py     then --mode=eval evaluates it
python -m pnn_jax.convert runs/model model.pth [--checkpoint=best]

Reads state_dicts and whole models (`torch.save(model)`, what the audit saved), in today's and in 2018's file format,
and executes nothing that is in them. Architecture is inferred from names and shapes, and for whole models from the
saved modules; what cannot be inferred comes from --config=FILE or --config.model.FIELD=VALUE. The noise of
`noise_resnet` is not part of its state_dict: it is written to, and read from, MODEL.noise.pth beside MODEL.pth.

Exit codes: 0 done; 1 a workdir whose checkpoints are damaged; 2 wrong usage or a file that cannot be converted.
"""

import argparse
import dataclasses
import pickle
import shlex
import sys
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from pnn_jax.errors import InputError, RunError
from pnn_jax.models import MODELS
from pnn_jax.pytorch import variables as torch_variables
from pnn_jax.pytorch.variables import TorchTensors

DEFAULT_CONFIG = 'configs/default.py'


# --- reading without executing ----------------------------------------------------------------------------------------


class Inert:
    """Stands for a pickled module: keeps its attributes, does nothing."""

    def __setstate__(self, state: Mapping) -> None:
        self.__dict__.update(state)

    def tensors(self, kinds: Sequence[str], prefix: str = '') -> dict[str, Any]:
        """Dotted name -> tensor, of this module and those inside it."""
        found = {
            prefix + name: value for kind in kinds for name, value in getattr(self, kind).items() if value is not None
        }
        for name, child in self._modules.items():
            if child is not None:
                found |= child.tensors(kinds, f'{prefix}{name}.')
        return found

    def modules(self, prefix: str = '') -> dict[str, 'Inert']:
        """Dotted name -> module, in order, this one first."""
        found = {prefix.removesuffix('.'): self}
        for name, child in self._modules.items():
            if child is not None:
                found |= child.modules(f'{prefix}{name}.')
        return found

    @property
    def kind(self) -> str:
        return type(self).__name__


def _harmless() -> dict[tuple[str, str], Any]:
    """The only callables that a file may name: constructors of tensors and plain containers."""
    import torch

    return {
        ('collections', 'OrderedDict'): OrderedDict,
        ('builtins', 'set'): set,
        ('__builtin__', 'set'): set,
        ('torch._utils', '_rebuild_tensor'): torch._utils._rebuild_tensor,
        ('torch._utils', '_rebuild_tensor_v2'): torch._utils._rebuild_tensor_v2,
        ('torch._utils', '_rebuild_parameter'): torch._utils._rebuild_parameter,
        ('torch.nn.backends.thnn', '_get_thnn_function_backend'): lambda: None,  # an attribute of modules until 1.4
    }


def _unpickler() -> type[pickle.Unpickler]:
    """An unpickler that makes tensors, containers and inert modules, and refuses every other name."""
    harmless = _harmless()

    class RestrictedUnpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            if (module, name) in harmless:
                return harmless[module, name]
            if (module == 'models' or module.startswith('torch.nn.modules.')) and name.isidentifier():
                return type(name, (Inert,), {})
            raise pickle.UnpicklingError(f'it names {module}.{name}, which is neither a tensor nor a module')

    return RestrictedUnpickler


def read_file(path: Path) -> Any:
    """What torch.save put into a file: a dict of tensors, or an `Inert` model. Nothing in the file is executed.

    Raises:
        InputError: it is damaged, or needs more than tensors, containers and modules.
    """
    import torch

    class Restricted:
        """What torch.load takes for the pickle module."""

        Unpickler = _unpickler()
        UnpicklingError = pickle.UnpicklingError

        @classmethod
        def load(cls, file, **options):
            return cls.Unpickler(file, **options).load()

    try:
        with open(path, 'rb') as file:
            start = file.read(4)
        if tarfile.is_tarfile(path):
            raise InputError(f'{path} is a tar archive, a format of torch before 0.1.10 that is not read')
        if start == b'PK\x03\x04':
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith('/constants.pkl') for name in archive.namelist()):
                    raise InputError(f'{path} is a TorchScript program; save its state_dict() instead')
                if damaged := archive.testzip():  # torch.load does not look at checksums
                    raise InputError(f'{path} is damaged: {damaged} differs from its checksum')
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # that the source code of inert modules cannot be found
            return torch.load(path, map_location='cpu', pickle_module=Restricted, weights_only=False)
    except FileNotFoundError:
        raise InputError(f'{path} does not exist') from None
    except pickle.UnpicklingError as error:
        raise InputError(f'{path} is refused: {_one_line(error)}') from None
    except InputError:
        raise
    except Exception as error:  # torch raises many kinds on damaged files
        raise InputError(f'{path} is damaged or no PyTorch file: {_one_line(error)}') from None


def _one_line(error: BaseException) -> str:
    return ' '.join(str(error).split())[:200]


def _numpy(tensors: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    import torch

    arrays = {}
    for key, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(
                f'{path}: {key!r} is a {type(tensor).__name__}, not a tensor; save a state_dict or a model by itself'
            )
        if tensor.dtype not in (torch.float32, torch.int64):
            raise InputError(
                f'{path}: {key} is {str(tensor.dtype).removeprefix("torch.")}; only float32 is converted '
                '(model.float() makes it)'
            )
        if not torch.isfinite(tensor).all():
            raise InputError(f'{path}: {key} has values that are not finite')
        arrays[str(key)] = tensor.detach().numpy()
    return arrays


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A PyTorch checkpoint and what is known of its network: fields of `config.model`, and its data."""

    tensors: TorchTensors
    fields: dict[str, Any]
    num_classes: int
    image_size: int
    channels: int | None


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a state_dict or a whole model, with the noise masks beside it."""
    content = read_file(path)
    noise_path = noise_file(path)
    noise = _numpy(read_file(noise_path), noise_path) if noise_path.exists() else {}
    if isinstance(content, Inert):
        try:
            modules = content.modules()
            held = {
                f'{name}.noise': module.noise
                for name, module in modules.items()
                if hasattr(module, 'noise') and module.kind == 'NoiseLayer'
            }
            tensors = content.tensors(('_parameters', '_buffers'))
            held_values = {key: value for key, value in held.items() if value.numel()}
            fields = fields_of_modules(modules)
        except (AttributeError, KeyError, TypeError, ValueError, StopIteration, RecursionError) as error:
            raise InputError(
                f'{path}: a saved model of unknown structure ({type(error).__name__}: {_one_line(error)}); '
                'save its state_dict instead'
            ) from None
        state_dict = {key: value for key, value in tensors.items() if key not in held}
        return _described(path, TorchTensors(_numpy(state_dict, path), noise or _numpy(held_values, path)), fields)
    if not isinstance(content, Mapping) or not content:
        raise InputError(f'{path} holds a {type(content).__name__}, not a state_dict or a model')
    return _described(path, TorchTensors(_numpy(content, path), noise), {})


def noise_file(path: Path) -> Path:
    """Where the noise masks of model.pth are: model.noise.pth."""
    return path.with_suffix('.noise.pth')


# --- what network it is -----------------------------------------------------------------------------------------------

DEPTHS = {  # (blocks in stage 3, bottleneck) -> network
    (2, False): 'noise_resnet18',
    (6, False): 'noise_resnet34',
    (6, True): 'noise_resnet50',
    (23, True): 'noise_resnet101',
    (36, True): 'noise_resnet152',
}
# Layers by their weights in the state_dict: (first layer, any later layer).
LAYER_PREFIXES = {
    'perturb_resnet18': ('pre_layers.0', 'layer1.0.layers.0'),
    'answer_resnet18': ('pre_layers.0', 'layer1.0.layers.0'),
    'lenet': ('first_layers.0', 'first_layers.2'),
    'cifarnet': ('first_layers.0', 'first_layers.1'),
}


def network_name(state_dict: Mapping[str, np.ndarray]) -> str:
    """The network that a state_dict is of, by the names of its tensors.

    Raises:
        InputError: of none.
    """
    if 'linear1.bias' in state_dict:
        return {128: 'lenet', 256: 'cifarnet'}.get(len(state_dict['linear1.bias']), '')
    if 'conv1.weight' in state_dict:
        return 'resnet18'
    if 'pre_layers.0.weight' in state_dict:
        blocks = {key.split('.')[1] for key in state_dict if key.startswith('layer3.')}
        return DEPTHS.get((len(blocks), 'layer1.0.layers.7.weight' in state_dict), '')
    if 'pre_layers.0.layers.0.weight' in state_dict:
        answers = any(f'pre_layers.{index}.weight' in state_dict for index in (1, 2))
        return 'answer_resnet18' if answers else 'perturb_resnet18'
    return ''


def _described(path: Path, tensors: TorchTensors, known: Mapping[str, Any]) -> Checkpoint:
    """Adds what names and shapes say to what the saved modules said."""
    state = tensors.state_dict
    name = network_name(state)
    if not name:
        first = next(iter(state), '')
        hint = '; save model.module, which DataParallel wraps' if first.startswith('module.') else ''
        raise InputError(f'{path} is of no network that is known; its first key is {first!r}{hint}')
    try:
        if name in LAYER_PREFIXES:
            fields, image_size, channels = _layers_inferred(name, state)
        elif name == 'resnet18':
            width, channels = state['conv1.weight'].shape[:2]
            fields, image_size = {'num_filters': width}, 32
        else:
            width, channels, kernel_size, _ = state['pre_layers.0.weight'].shape
            fields = {'num_filters': width, 'stem_kernel_size': kernel_size}
            size = next(iter(tensors.noise_masks.values())).shape[-1] if tensors.noise_masks else 8
            image_size = size * (4 if kernel_size == 7 else 1)
        num_classes = len(state['linear2.bias' if name in ('lenet', 'cifarnet') else 'linear.bias'])
    except KeyError as error:
        raise InputError(f'{path}: {error.args[0]} is missing') from None
    except (ValueError, IndexError):
        raise InputError(f'{path} is of no network that is known: its tensors have unexpected shapes') from None
    fields = {key: value for key, value in (fields | known).items() if key in MODELS[name].fields}
    return Checkpoint(tensors, {'name': name, **fields}, num_classes, image_size, channels)


def _layers_inferred(name: str, state: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], int, int | None]:
    """Fields of config.model, size and channels of the images for a network of PerturbLayers.

    Channels are None where shared masks hide them.
    """
    first, later = LAYER_PREFIXES[name]
    fields = {
        'num_filters': len(state[f'{later}.layers.0.weight']),
        'mix_channels': any('.mix_layers.' in key for key in state),
        **({'activation': 'prelu'} if any(key.endswith('.act.weight') for key in state) else {}),
    }
    image_size = 32
    if name in ('lenet', 'cifarnet'):
        image_size = 8 * round((state['linear1.weight'].shape[1] / fields['num_filters']) ** 0.5)
    for prefix, kind, kernel in ((later, 'layer', 'kernel_size'), (first, 'stem_layer', 'stem_kernel_size')):
        if f'{prefix}.noise' not in state:
            fields |= {kind: 'conv', kernel: state[f'{prefix}.layers.0.weight'].shape[-1]}
            channels = state[f'{prefix}.layers.0.weight'].shape[1]
            continue
        _, owners, masks, size, _ = state[f'{prefix}.noise'].shape
        fields[kind] = 'perturbation'
        if prefix == later or name != 'answer_resnet18':  # whose first layer has its own number of masks
            fields |= {'num_masks': masks}
        if prefix == later or owners > 1:  # one owner may also mean one channel
            fields |= {'share_masks': owners == 1}
        image_size = size
        channels = owners if owners > 1 else state[f'{prefix}.layers.0.weight'].shape[1] if masks == 1 else None
    return fields, image_size, channels


ACTIVATION_KINDS = {
    'ReLU': 'relu',
    'LeakyReLU': 'lrelu',
    'PReLU': 'prelu',
    'RReLU': 'rrelu',
    'ELU': 'elu',
    'SELU': 'selu',
    'Tanh': 'tanh',
    'Sigmoid': 'sigmoid',
}


def fields_of_modules(modules: Mapping[str, Inert]) -> dict[str, Any]:
    """Fields of config.model from the attributes of a saved model's modules."""
    if (root := modules['']).kind == 'NoiseResNet':
        first_noise = next(module for module in modules.values() if module.kind == 'NoiseLayer')
        frozen = not root.tensors(('_parameters',))['pre_layers.0.weight'].requires_grad
        return {'noise_level': first_noise.level, 'freeze_stem': frozen}
    stem = modules.get('pre_layers.0') or modules.get('first_layers.0')
    if stem is None:
        return {}
    later = next(module for module in modules.values() if module.kind == 'PerturbLayer' and module is not stem)
    activation = root if stem.kind == 'PerturbLayerFirst' else later
    pooling = next(m.kind for m in modules.values() if m.kind in ('MaxPool2d', 'AvgPool2d'))
    scale = 20 if stem.kind == 'PerturbLayerFirst' else 1
    return {
        'noise_level': later.level,
        'stem_noise_scale': stem.level / (later.level * scale) if later.level else 1.0,
        'noise_type': later.noise_type,
        'share_masks': not later.unique_masks,
        'trainable_masks': bool(later.train_masks),
        'activate_after_noise': bool(stem.use_act),
        'activation': ACTIVATION_KINDS[activation._modules['act'].kind],
        'pooling': {'MaxPool2d': 'max', 'AvgPool2d': 'avg'}[pooling],
        'dropout_rate': next((m.p for m in modules.values() if m.kind == 'Dropout'), 0.0),
    }


# Fields that decide outputs and cannot be seen in a state_dict, by what of the network they concern.
UNSEEN_ALWAYS = ('activation', 'pooling')
UNSEEN_WITH_NOISE = ('noise_level',)
UNSEEN_WITH_NOISY_STEM = ('stem_noise_scale', 'activate_after_noise')


def unseen(checkpoint: Checkpoint) -> list[str]:
    """Fields of config.model that matter to this network and that its file does not tell."""
    fields = checkpoint.fields
    noisy_stem = fields.get('stem_layer') == 'perturbation'
    noisy = noisy_stem or fields.get('layer') == 'perturbation' or fields['name'] in DEPTHS.values()
    matter = UNSEEN_ALWAYS + UNSEEN_WITH_NOISE * noisy + UNSEEN_WITH_NOISY_STEM * noisy_stem
    return [field for field in matter if field in MODELS[fields['name']].fields and field not in fields]


# --- both directions --------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class GivenConfig:
    """A config with where it came from: a file that the user named, and fields set on the command line."""

    config: ml_collections.ConfigDict
    file: str
    named: bool
    overridden: tuple[str, ...]


def read_config(arguments: Sequence[str]) -> GivenConfig:
    """--config=FILE (default: configs/default.py) and --config.FIELD=VALUE.

    Raises:
        InputError: another argument, an unknown field, a file that cannot be read.
    """
    values = flags.FlagValues()
    command = ['', *arguments]
    named = [argument for argument in arguments if argument.lstrip('-').split('=')[0] == 'config']
    try:
        holder = config_flags.DEFINE_config_file('config', DEFAULT_CONFIG, flag_values=values, sys_argv=command)
        rest = values(command)
        config = holder.value
        config.to_dict()  # a file that cannot be loaded raises only when it is used
        overridden = tuple(config_flags.get_override_values(values['config']))
        file = config_flags.get_config_filename(values['config'])
    except (flags.Error, OSError, ImportError, SyntaxError, TypeError, AttributeError, ValueError) as error:
        raise InputError(f'--config: {_one_line(error)}') from None
    if len(rest) > 1:
        raise InputError(f'unexpected argument {rest[1]!r}')
    return GivenConfig(config, file, bool(named), overridden)


def merge(checkpoint: Checkpoint, given: GivenConfig) -> ml_collections.ConfigDict:
    """The run's config: what the file tells, and the user's word for the rest.

    Raises:
        InputError: the two disagree, or nobody says what a field is.
    """
    told = [field.removeprefix('model.') for field in given.overridden if field.startswith('model.')]
    config = given.config.copy_and_resolve_references()
    for field, value in checkpoint.fields.items():
        if (given.named or field in told) and config.model[field] != value:
            raise InputError(
                f'config.model.{field}={config.model[field]!r}, but the file is of a network with {value!r}'
            )
    open_questions = [field for field in unseen(checkpoint) if not given.named and field not in told]
    if open_questions:
        asked = ' '.join(f'--config.model.{field}=...' for field in open_questions)
        raise InputError(f'the file does not tell {", ".join(open_questions)}: give --config=FILE, or {asked}')
    config.model.update(checkpoint.fields)
    return config


def to_workdir(source: Path, workdir: Path, given: GivenConfig) -> str:
    """Writes a checkpoint of `source` that --mode=eval evaluates. Returns the command for it."""
    import jax

    from pnn_jax.optim import create_optimizer
    from pnn_jax.run.checkpoints import Checkpointer, tree_digest
    from pnn_jax.run.workdir import Workdir, flat_fields
    from pnn_jax.train import saved_part
    from pnn_jax.train_state import from_variables

    checkpoint = read_checkpoint(source)
    config = merge(checkpoint, given)
    channels = checkpoint.channels or len(config.data.mean)
    shapes = torch_variables.variable_shapes(config.model, checkpoint.num_classes, checkpoint.image_size, channels)
    try:
        variables, num_steps = torch_variables.from_torch(checkpoint.tensors, config.model, shapes)
    except InputError as error:
        raise InputError(f'{source}: {error}') from None
    if (workdir / 'checkpoints').exists():
        raise InputError(f'{workdir} holds a run already; name another directory')
    optimizer = create_optimizer(config.optimizer, lambda step: config.optimizer.learning_rate)
    state = from_variables(jax.tree.map(jax.numpy.asarray, variables), optimizer, jax.random.key(config.seed))
    state = state.replace(step=jax.numpy.asarray(num_steps or 0, jax.numpy.int32))
    with Workdir.open(workdir, config) as opened, Checkpointer(opened.checkpoints_dir) as checkpointer:
        checkpointer.save_masks(state.fixed)
        meta = {'fixed_digest': tree_digest(state.fixed), 'data_digest': ''}
        checkpointer.save(int(state.step), saved_part(state), meta, accuracy=None)
    loaded_again = flat_fields(read_config([f'--config={given.file}']).config)
    changed = [
        f'--config.{field}={tuple(value) if isinstance(value, list) else value}'
        for field, value in flat_fields(config).items()
        if value != loaded_again[field]
    ]
    command = ['python', '-m', 'pnn_jax.main', '--mode=eval', f'--workdir={workdir}', f'--config={given.file}']
    return shlex.join([*command, *changed])


def from_workdir(workdir: Path, target: Path, which: str, arguments: Sequence[str]) -> list[Path]:
    """Writes a run's checkpoint as a state_dict. Returns the files written: noise masks of noise_resnet are a second.

    The shape of the images and the number of classes come from the run's data set, which must be at hand.
    """
    import json

    import torch

    from pnn_jax.run.checkpoints import Checkpointer
    from pnn_jax.train import Trainer, load_data, restore

    if arguments:
        raise InputError(f'unexpected argument {arguments[0]!r}: the config is that of the run')
    for path in (target, noise_file(target)):
        if path.exists():
            raise InputError(f'{path} exists already; name another file')
    try:
        config = ml_collections.ConfigDict(json.loads((workdir / 'config.json').read_text()))
    except (OSError, ValueError) as error:
        raise InputError(f'{workdir} is no workdir: config.json: {_one_line(error)}') from None
    trainer = Trainer(config, load_data(config.data))
    with Checkpointer(workdir.absolute() / 'checkpoints', read_only=True) as checkpointer:
        state, restored = restore(checkpointer, trainer.fresh_state(config.seed, config.mask_seed), which)
    if restored is None:
        raise InputError(f'{workdir} has no checkpoint')
    tensors = torch_variables.to_torch(state.variables, config.model, num_steps=int(state.step))
    written = {target: tensors.state_dict, noise_file(target): tensors.noise_masks}
    for path, arrays in written.items():
        if arrays:
            try:
                torch.save(OrderedDict((key, torch.from_numpy(np.array(array))) for key, array in arrays.items()), path)
            except (OSError, RuntimeError) as error:
                raise InputError(f'{path}: cannot be written ({_one_line(error)})') from None
    return [path for path, arrays in written.items() if arrays]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m pnn_jax.convert', description=__doc__.splitlines()[0])
    parser.add_argument('source', type=Path, metavar='IN', help='a .pth file, or a workdir')
    parser.add_argument('target', type=Path, metavar='OUT', help='a new workdir, or a .pth file')
    parser.add_argument('--checkpoint', choices=('latest', 'best'), default='latest', help='which one of a workdir')
    args, arguments = parser.parse_known_args(argv)
    try:
        if args.source.is_dir():
            files = from_workdir(args.source, args.target, args.checkpoint, arguments)
            print(f'written: {", ".join(map(str, files))}')
            if len(files) > 1:
                print('PyTorch keeps the noise of noiseresnet out of the state_dict; load it from the second file')
        else:
            print(f'written; evaluate it with: {to_workdir(args.source, args.target, read_config(arguments))}')
    except (InputError, RunError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
