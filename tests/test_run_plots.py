"""The plots of a run show what was counted and computed, and stay within their limits."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from pnn_jax.evaluate import Evaluation, evaluate_exactly
from pnn_jax.models.noise_resnet import NoiseLayer
from pnn_jax.nn.perturbation import NormalizedPerturbationLayer, PerturbationLayer
from pnn_jax.run import plots
from pnn_jax.run.responses import Responses, first_responses
from pnn_jax.run.writers.base import FinishedRun
from pnn_jax.run.writers.plots import PlotsWriter

CLASSES = ('cat', 'dog', 'a class with a very long name')


def evaluation_of(labels, predicted, confidence=None) -> Evaluation:
    labels, predicted = np.asarray(labels, np.int32), np.asarray(predicted, np.int32)
    confidence = np.full(len(labels), 0.5) if confidence is None else np.asarray(confidence)
    correct = labels == predicted
    nonfinite = int((predicted < 0).sum())
    return Evaluation(correct, correct, labels, 1.0, nonfinite, predicted, confidence.astype(np.float32))


def texts(figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in (*axes.texts, axes.title) if text.get_text()]


def test_predictions_agree_with_the_counts_whatever_the_logits():
    """Also with ties, of which the first class is predicted, and with logits that are not finite."""
    logits = np.array([[1, 1, 0], [0, 1, 1], [np.nan, 5, 0], [0, 0, np.inf], [2, 0, 0], [0, 3, 9]], np.float32)
    labels = np.array([0, 2, 1, 2, 0, 2])
    result = evaluate_exactly(lambda _, x: x[:, :3], 0.0, logits, labels, batch_size=4)
    assert result.predicted.tolist() == [0, 1, -1, -1, 0, 2]
    assert result.correct.tolist() == (result.predicted == labels).tolist() == [True, False, False, False, True, True]
    assert result.confidence[2:4].tolist() == [0, 0]
    finite = result.predicted >= 0
    np.testing.assert_allclose(result.confidence[finite], jax.nn.softmax(logits[finite]).max(1), rtol=1e-6)


def test_confusion_matrix_counts_every_finite_prediction():
    evaluation = evaluation_of([0, 0, 1, 2, 2, 2], [0, 1, 1, 0, -1, 2])
    counts = plots.confusion_matrix(evaluation, 3)
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert counts.trace() == evaluation.num_correct
    figure = plots.plot_confusion(evaluation, CLASSES)
    assert '3 of 6 correct' in texts(figure)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ['cat', 'dog', 'a class wit...']
    assert plots.plot_confusion(evaluation, [str(i) for i in range(plots.MAX_CLASSES + 1)]) is None


def test_mistakes_are_the_most_confident_ones_first():
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 4, 1), np.uint8)
    evaluation = evaluation_of([0, 1, 2, 0, 1], [1, 1, 0, 2, -1], [0.6, 0.99, 0.9, 0.7, 0.0])
    figure = plots.plot_mistakes(evaluation, images, CLASSES)
    assert texts(figure) == ['a class wit..., not cat\n(90%)', 'cat, not a class wit...\n(70%)', 'cat, not dog\n(60%)']
    (axes,) = figure.axes
    assert [image.get_array().flat[0] for image in axes.images] == [2, 3, 0]
    assert 'of 3 mistakes' in figure.get_suptitle()
    assert plots.plot_mistakes(evaluation_of([0, 1], [0, 1]), images[:2], CLASSES) is None
    large = np.zeros((5, plots.MAX_IMAGE_SIDE + 1, 2, 3), np.uint8)
    assert plots.plot_mistakes(evaluation, large, CLASSES) is None


class Network(nn.Module):
    """The layer that is looked for, behind one that responds in another way."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x, train=False):
        x = NormalizedPerturbationLayer(features=2, num_masks=1, noise_level=9.0)(x, train)
        y = self.layer(x, train)
        assert y.shape[0] == 2, 'nothing after the layer is computed'
        return y


@pytest.mark.parametrize(
    'layer, activation',
    [
        (PerturbationLayer(features=4, num_masks=3, share_masks=True, activation='tanh'), np.tanh),
        (PerturbationLayer(features=4, trainable_masks=True, noise_level=0.7, activation=None), lambda x: x),
        (NoiseLayer(features=4), lambda x: np.maximum(x, 0)),
    ],
    ids=['shared', 'trained', 'noise layer'],
)
def test_responses_are_those_of_the_first_layer_with_masks(layer, activation):
    rng = np.random.default_rng(0)
    network, images = Network(layer), rng.normal(size=(2, 4, 5, 2)).astype(np.float32)
    keys = {'params': jax.random.key(0), 'noise_masks': jax.random.key(1)}
    shapes = jax.eval_shape(network.init, keys, images)
    variables = jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)
    found = first_responses(network, variables, images[:1])
    collection = 'params' if layer.trainable_masks else 'noise_masks'
    masks = layer.noise_level * variables[collection]['layer']['masks'][:, :, 0].reshape(4, 5, -1)
    assert found.layer == 'layer' and found.x.shape == (4, 5) and masks.shape[2] == getattr(layer, 'num_masks', 1)
    np.testing.assert_allclose(found.masks, np.moveaxis(masks, -1, 0), rtol=1e-6)
    np.testing.assert_allclose(found.responses, activation(found.x + found.masks), rtol=1e-5, atol=1e-6)


def test_network_without_masks_has_no_responses():
    network = SimpleNamespace(apply=lambda variables, images, train: images)
    assert first_responses(network, {}, np.zeros((1, 2, 2, 1))) is None


def test_masks_of_large_maps_are_not_plotted():
    maps = np.zeros((2, 3, 3), np.float32)
    (axes,) = plots.plot_masks(Responses('it', maps[0], maps, maps)).axes
    assert len(axes.images) == 1 + 2 + 2  # the input, and two masks with their responses
    large = np.zeros((2, 3, plots.MAX_IMAGE_SIDE + 1), np.float32)
    assert plots.plot_masks(Responses('it', large[0], large, large)) is None


def test_writer_leaves_the_plots_that_there_are(tmp_path):
    """Of data that are not in memory, only the confusion matrix; plots that are no longer true are removed."""
    evaluation = evaluation_of([0, 1, 2], [0, 2, 2])
    network = SimpleNamespace(apply=lambda variables, images, train: images)
    images = np.zeros((3, 4, 4, 3), np.uint8)
    run = FinishedRun([], {}, evaluation, CLASSES, images, network, {}, lambda images: images)
    writer = PlotsWriter(SimpleNamespace(path=tmp_path), None)
    writer.finish(run)
    assert sorted(path.name for path in (tmp_path / 'plots').iterdir()) == ['confusion.png', 'mistakes.png']
    assert (tmp_path / 'plots' / 'mistakes.png').read_bytes().startswith(b'\x89PNG')
    writer.finish(run._replace(images=None))
    assert [path.name for path in (tmp_path / 'plots').iterdir()] == ['confusion.png']
