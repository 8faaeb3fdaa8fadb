"""The plots that a run leaves, as matplotlib figures.

They are made with `Figure` and not with pyplot, which would change the backend of a notebook that trains a network.
"""

from collections.abc import Sequence

import numpy as np
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
        for (row, column), count in np.ndenumerate(counts):
            colour = 'white' if shares[row, column] > 0.6 else 'black'
            axes.text(column, row, str(count), ha='center', va='center', fontsize=7, color=colour)
    names = [_shortened(name) for name in class_names]
    size = 8 if len(names) <= 40 else 4
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
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
    figure = Figure(figsize=(2 * columns, 2.3 * rows), layout='constrained')
    for axes, index in _cells(figure, rows, columns, worst):
        _show(axes, images[index])
        label, predicted = (class_names[value[index]] for value in (evaluation.labels, evaluation.predicted))
        probability = 100 * evaluation.confidence[index]
        axes.set_title(f'{_shortened(label)}, not {_shortened(predicted)}\n({probability:.0f}%)', fontsize=8)
    figure.suptitle(f'The most confident of {wrong.size} mistakes: label, not the prediction (its probability)')
    return figure


def plot_masks(responses: Responses) -> Figure | None:
    """Masks of a layer and its responses to one image; None where the maps are too large."""
    if max(responses.x.shape) > MAX_IMAGE_SIDE:
        return None
    count = min(NUM_MASKS, len(responses.masks))
    figure = Figure(figsize=(1.5 * (count + 1), 3.6), layout='constrained')
    axes = figure.subplots(2, count + 1, squeeze=False)
    limit = np.abs(responses.masks[:count]).max() or 1
    _show(axes[0, 0], responses.x)
    axes[0, 0].set_title('x', fontsize=8)
    axes[1, 0].axis('off')
    for index in range(count):
        mask, response = axes[:, index + 1]
        mask.imshow(responses.masks[index], cmap='RdBu', vmin=-limit, vmax=limit)
        mask.set_title(f'level * mask {index}', fontsize=8)
        _show(response, responses.responses[index])
        response.set_title('response', fontsize=8)
        mask.axis('off')
    figure.suptitle(f'{responses.layer}: masks and responses of its first input channel, first test image', fontsize=10)
    return figure


def _cells(figure: Figure, rows: int, columns: int, items: np.ndarray) -> list[tuple]:
    """An axes of a grid for every item; those that are left over show nothing."""
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(items) :]:
        axes.axis('off')
    return list(zip(grid, items, strict=False))


def _show(axes, image: np.ndarray) -> None:
    """Shows [h, w] or [h, w, 1] in grey, uint8 [h, w, 3] in colour."""
    axes.imshow(image.squeeze(-1) if image.shape[2:] == (1,) else image, cmap='gray')
    axes.axis('off')


def _shortened(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f'{name[: length - 3]}...'
