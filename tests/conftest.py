"""Four fake CPU devices and strict rank promotion for every test; what compiles twice is compiled once."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # read when jax is imported

import hypothesis
import jax
import pytest

from pnn_jax.paths import local_path
from pnn_jax.program_cache import folder_of_machine, use_program_cache

PROGRAMS = local_path(os.environ.get('XDG_CACHE_HOME') or '~/.cache', 'XDG_CACHE_HOME') / 'pnn_jax_tests'
use_program_cache(os.fspath(PROGRAMS))
# For the processes that tests start.
os.environ['JAX_COMPILATION_CACHE_DIR'] = os.fspath(folder_of_machine(PROGRAMS))
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

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
