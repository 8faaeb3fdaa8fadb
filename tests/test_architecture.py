"""The picture in docs/architecture.md is true: a module imports only from lines above its own."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parent.parent
# The lines of the picture, from top to bottom.
ORDER = [
    'errors extras paths padding options runtime hosts',
    'ops',
    'nn',
    'models',
    'metrics evaluate accounting stats optim',
    'data',
    'train_step validate program_cache',
    'run',
    'trainer',
    'run.resume',
    'train',
    'evaluate_run pytorch config_flag',
    'main convert export prepare',
]
LEVELS = {name: level for level, line in enumerate(ORDER) for name in line.split()}


def level_of(module: str) -> int:
    parts = module.split('.')[1:]
    return next(LEVELS[name] for name in ('.'.join(parts[:2]), parts[0]) if name in LEVELS)


def test_modules_import_only_from_above():
    files = (ROOT / 'pnn_jax').rglob('*.py')
    modules = {'.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path for path in files}
    imports = 0
    for module, path in modules.items():
        if module == 'pnn_jax':  # loads every public name when it is used
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            for imported in imported_modules(node, modules):
                imports += 1
                assert level_of(imported) <= level_of(module), f'{path}:{node.lineno}'
    assert imports > 200


def imported_modules(node: ast.AST, modules) -> list[str]:
    """The modules of pnn_jax that a statement imports, in any of the three forms."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names if alias.name.startswith('pnn_jax.')]
    if not isinstance(node, ast.ImportFrom) or not node.module or node.module.partition('.')[0] != 'pnn_jax':
        return []
    names = [f'{node.module}.{alias.name}' for alias in node.names]
    inner = [name for name in names if name in modules]
    return inner or ([node.module] if node.module != 'pnn_jax' else [])
