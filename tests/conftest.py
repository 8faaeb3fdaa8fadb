"""Four fake CPU devices and strict rank promotion for every test; what compiles twice is compiled once."""

import hashlib
import os
import pathlib
import shutil
from importlib import metadata

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

MAX_CACHE_BYTES = 2**30


def _compilation_cache() -> str:
    """A folder of compiled programs that outlives the session. Programs are of one jax and one kind of processor.

    A cache that has grown too large is deleted when a session starts. jax's own limit takes a lock for every program.
    """
    processor = pathlib.Path('/proc/cpuinfo')
    lines = processor.read_text().splitlines() if processor.exists() else []
    kind = '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags'))}))
    key = f'{metadata.version("jaxlib")}-{hashlib.sha256(kind.encode()).hexdigest()[:12]}'
    home = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    folder = pathlib.Path(home, 'pnn_jax_tests', key)
    is_worker = 'PYTEST_XDIST_WORKER' in os.environ
    size = sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() and not is_worker else 0
    if size > MAX_CACHE_BYTES:
        shutil.rmtree(folder, ignore_errors=True)
    return os.fspath(folder)


# Environment variables, so that the processes that tests start share the cache.
os.environ['JAX_COMPILATION_CACHE_DIR'] = _compilation_cache()
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import hypothesis  # noqa: E402
import jax  # noqa: E402  (the variables are read when jax starts)
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')

# On a busy machine any example may take long.
hypothesis.settings.register_profile('tests', deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile('tests')


@pytest.fixture
def quick_compilation():
    """Leaves out XLA's optimizations, for programs that take longer to optimize than to run."""
    jax.config.update('jax_disable_most_optimizations', True)
    yield
    jax.config.update('jax_disable_most_optimizations', False)
