"""The smallest program found on which XLA:GPU aborts (jaxlib 0.10.2), to be reported and to be tested.

    x = relu(x.reshape(16, 32, 32, 8) + y)
    return x, x[:, ::2, ::2].reshape(-1, 8) @ weights

It fails a check in triton_tiling_propagation.cc:627, `subdim_size_accumulator == dim_size (256 vs. 32)`. The pass that
fuses operands into the product goes from the reshape through the strided slice to the elementwise operations, and from
there to the first reshape, whose dimensions it then computes from the sliced shape. The first output is needed: without
it, XLA slices before the elementwise operations. A barrier between slice and product avoids the abort, and so does
XLA_FLAGS=--xla_gpu_enable_triton_gemm=false. In a network this is the strided 1x1 convolution of a residual block.

python -m experiments.compile.triton_abort is the child process of the test.
"""

from experiments.compile.measure import answer


def compile_smallest(request: dict, schedules: str) -> str:
    """Compiles the program for an H100, with the barrier if the request says so."""
    del schedules
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from experiments.compile.targets import open_devices

    def program(x, y, weights):
        x = jax.nn.relu(x.reshape(16, 32, 32, 8) + y)
        sliced = x[:, ::2, ::2]
        if request['barrier']:
            sliced = jax.lax.optimization_barrier(sliced)
        return x, sliced.reshape(-1, 8) @ weights

    sharding = SingleDeviceSharding(open_devices('h100')[0])
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    jax.jit(program).lower(array(16384, 8), array(16, 32, 32, 8), array(8, 16)).compile()
    return 'compiled'


if __name__ == '__main__':
    answer(compile_smallest)
