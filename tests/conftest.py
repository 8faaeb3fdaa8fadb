"""Four fake CPU devices and strict rank promotion for every test; what compiles twice is compiled once."""

import os
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A cache of compiled programs that lives as long as the session, for the tests' own subprocesses too.
_CACHE = tempfile.TemporaryDirectory(prefix='pnn_jax_tests_')
os.environ['JAX_COMPILATION_CACHE_DIR'] = _CACHE.name
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import jax  # noqa: E402  (the variables are read when jax starts)

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
