"""The plots that a run leaves, as matplotlib figures.

They are made with `Figure` and not with pyplot, which would change the backend of a notebook that trains a network.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pnn_jax.evaluate import Evaluation
from pnn_jax.run.responses import Responses
from pnn_jax.run.result import evaluated_split

# Larger data sets get no such plot: it would take long to draw, and nobody could read it.
MAX_CLASSES = 100  # of the confusion matrix
MAX_IMAGE_SIDE = 256  # pixels, of the images and maps that are shown
MAX_CLASSES_WITH_COUNTS = 20  # more leave no room for the counts in the cells

NUM_MASKS = 8
MISTAKES_GRID = (3, 6)  # rows, columns

DPI = 110
ROW_HEIGHT = 1.35  # of a grid of images, in widths of an image; the rest is for captions


def plot_curves(history: list[dict], title: str) -> Figure:
    """Loss, accuracy and learning rate over the epochs of `history`, the lines of metrics.jsonl."""
    epochs, split = [line['epoch'] for line in history], evaluated_split(history[-1])
    column = lambda name, factor=1.0: [factor * line[name] for line in history]
    figure = Figure(figsize=(12, 3.4), layout='constrained')
    loss, accuracy, rate = figure.subplots(1, 3)
    marker = 'o' if len(epochs) < 20 else None
    loss.plot(epochs, column('train_loss'), marker=marker, label='train')
    loss.plot(epochs, column(f'{split}_loss'), marker=marker, label=split)
    loss.set(xlabel='epoch', ylabel='cross entropy [nats]')
    loss.legend()
    accuracy.plot(epochs, column('train_accuracy', 100), marker=marker, label='train')
    accuracy.plot(epochs, column(f'{split}_accuracy', 100), marker=marker, label=f'{split}, exact')
    accuracy.set(xlabel='epoch', ylabel='accuracy [%]')
    accuracy.legend(loc='lower right')
    last = history[-1]
    accuracy.set_title(f'{last[f"{split}_correct"]} of {last[f"{split}_count"]} correct')
    rate.step(epochs, column('learning_rate'), where='post', marker=marker)
    rate.set(xlabel='epoch', ylabel='learning rate', yscale='log')
    for axes in (loss, accuracy, rate):
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    return figure


def confusion_matrix(evaluation: Evaluation, num_classes: int) -> np.ndarray:
    """int [classes, classes]: how many examples of each class (row) were taken for each class (column).

    The diagonal sums to `evaluation.num_correct`. Examples with a logit that is not finite are in no column.
    """
    finite = evaluation.predicted >= 0
    cells = evaluation.labels[finite] * num_classes + evaluation.predicted[finite]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def plot_confusion(evaluation: Evaluation, class_names: Sequence[str]) -> Figure | None:
    """The confusion matrix as shares of each class; None for more than MAX_CLASSES classes."""
    if len(class_names) > MAX_CLASSES:
        return None
    counts = confusion_matrix(evaluation, len(class_names))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 3 + 0.3 * min(len(class_names), 40)
    figure = Figure(figsize=(side + 1, side), layout='constrained')
    axes = figure.subplots()
    image = axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
    figure.colorbar(image, label='share of the class', shrink=0.8)
    if len(class_names) <= MAX_CLASSES_WITH_COUNTS:
        for row, column in np.argwhere(counts):
            colour = 'white' if shares[row, column] > 0.6 else 'black'
            axes.text(column, row, str(counts[row, column]), ha='center', va='center', fontsize=7, color=colour)
    names = [_shortened(name) for name in class_names]
    size = 8 if len(names) <= 40 else 4
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel='predicted', ylabel='label')
    axes.set_title(f'{evaluation.num_correct} of {evaluation.count} correct', fontsize=10)
    return figure


def plot_mistakes(evaluation: Evaluation, images: np.ndarray, class_names: Sequence[str]) -> Figure | None:
    """The wrong predictions with the highest probabilities; None where there are none, or images are too large.

    Args:
        evaluation: of `images`, in the same order.
        images: uint8 [n, h, w, 1 or 3].
        class_names: name of each label.
    """
    wrong = np.flatnonzero(~evaluation.correct & (evaluation.predicted >= 0))
    if not wrong.size or max(images.shape[1:3]) > MAX_IMAGE_SIDE:
        return None
    rows, columns = MISTAKES_GRID
    worst = wrong[np.argsort(-evaluation.confidence[wrong], kind='stable')][: rows * columns]
    title = f'The most confident of {wrong.size} mistakes: label, not the prediction (its probability)'
    figure, axes = _grid(-(-len(worst) // columns), columns, title)
    for position, index in enumerate(worst):
        label, predicted = (class_names[value[index]] for value in (evaluation.labels, evaluation.predicted))
        probability = 100 * evaluation.confidence[index]
        caption = f'{_shortened(label)}, not {_shortened(predicted)}\n({probability:.0f}%)'
        _show(axes, *divmod(position, columns), images[index], caption, cmap='gray')
    return figure


def plot_masks(responses: Responses) -> Figure | None:
    """Masks of a layer and its responses to one image; None where the maps are too large."""
    if max(responses.x.shape) > MAX_IMAGE_SIDE:
        return None
    masks = responses.masks[:NUM_MASKS]
    limit = np.abs(masks).max() or 1
    title = f'{responses.layer}: masks and responses of its first input channel, first test image'
    figure, axes = _grid(2, len(masks) + 1, title)
    _show(axes, 0, 0, responses.x, 'x', cmap='gray')
    for index, mask in enumerate(masks):
        _show(axes, 0, index + 1, mask, f'level * mask {index}', cmap='RdBu', vmin=-limit, vmax=limit)
        _show(axes, 1, index + 1, responses.responses[index], 'response', cmap='gray')
    return figure


def _grid(rows: int, columns: int, title: str) -> tuple[Figure, Axes]:
    """A figure for rows x columns images in one axes. With an axes each, it would take five times as long to draw."""
    width = max(1.5 * columns, 5)
    figure = Figure(figsize=(width, width / columns * ROW_HEIGHT * rows + 0.4))
    axes = figure.add_axes((0.01, 0, 0.98, 1 - 0.4 / figure.get_figheight()))
    axes.axis('off')
    axes.set(xlim=(0, columns), ylim=(ROW_HEIGHT * rows, 0), autoscale_on=False)
    figure.suptitle(title, fontsize=10)
    return figure, axes


def _show(axes: Axes, row: int, column: int, image: np.ndarray, caption: str, **options) -> None:
    """Shows [h, w], [h, w, 1] or uint8 [h, w, 3] in a cell of a grid, and a caption above it."""
    height, width = 0.94 * np.array(image.shape[:2]) / max(image.shape[:2])
    left, top = column + 0.03, ROW_HEIGHT * row + ROW_HEIGHT - 0.97
    image = image.squeeze(-1) if image.shape[2:] == (1,) else image
    axes.imshow(image, extent=(left, left + width, top + height, top), **options)
    axes.text(left, top - 0.03, caption, va='bottom', fontsize=7)


def _shortened(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f'{name[: length - 3]}...'
