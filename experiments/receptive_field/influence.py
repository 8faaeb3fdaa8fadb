"""How strongly does one central feature depend on each pixel?

The influence of a pixel is the absolute gradient of the central unit of the last feature map (summed over channels)
with respect to it, summed over colours and averaged over images (Luo et al., Understanding the Effective Receptive
Field, 2016).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np

from experiments.plots import plt

BATCH_SIZE = 20


def receptive_field(model: nn.Module, variables, images: np.ndarray) -> np.ndarray:
    """The influence [h, w] of every pixel of images [n, h, w, c], scaled so that it sums to 1.

    Args:
        model: a residual network.
    """
    last_block = f'stage{len(model.stage_sizes)}_block{model.stage_sizes[-1]}'

    def central_feature(images):
        is_last = lambda module, _: module.name == last_block
        _, kept = model.apply(variables, images, train=False, capture_intermediates=is_last, mutable='intermediates')
        features = kept['intermediates'][last_block]['__call__'][0]
        # In evaluation, images do not affect each other. So the gradient of the sum holds the gradients of all images.
        return features[:, features.shape[1] // 2, features.shape[2] // 2].sum()

    gradient = jax.jit(jax.grad(central_feature))
    field = np.zeros(images.shape[1:3])
    for start in range(0, len(images), BATCH_SIZE):
        field += np.abs(np.asarray(gradient(images[start : start + BATCH_SIZE]))).sum((0, 3))
    return field / max(field.sum(), np.finfo(float).tiny)


def describe(field: np.ndarray) -> dict[str, int]:
    """Number of pixels with any influence, and the smallest number of pixels that have 95% of it."""
    shares = np.sort(field.ravel())[::-1]
    return {'pixels': int((field > 0).sum()), 'pixels_95': int(np.searchsorted(np.cumsum(shares), 0.95) + 1)}


def plot_of(fields: dict[str, np.ndarray], title: str) -> plt.Figure:
    """One panel per network: the image, pixel by pixel, and how strongly each pixel matters."""
    columns = min(4, len(fields))
    rows = -(-len(fields) // columns)
    figure, panels = plt.subplots(
        rows, columns, figsize=(3 * columns, 3.6 * rows + 1.4), layout='constrained', squeeze=False
    )
    for axes in panels.flat[len(fields) :]:
        axes.set_axis_off()
    for axes in panels[:, 0]:
        axes.set_ylabel('row (pixels)')
    for axes in panels[-1]:
        axes.set_xlabel('column (pixels)')
    for axes, (name, field) in zip(panels.flat, fields.items(), strict=False):
        numbers = describe(field)
        shown = np.sqrt(field / max(field.max(), np.finfo(float).tiny))  # the root makes weak influence visible
        image = axes.imshow(shown, cmap='magma', vmin=0, vmax=1)
        axes.set_title(f'{name}\nsees {numbers["pixels"]} of {field.size} pixels', fontsize='small')
        axes.tick_params(labelsize='small')
    bar = figure.colorbar(image, ax=panels, location='bottom', shrink=0.5, aspect=40)
    bar.set_label('influence of the pixel, root of its share of the largest')
    figure.suptitle(f'Which pixels can change one unit in the middle of the last map? Black: none.\n{title}')
    return figure
