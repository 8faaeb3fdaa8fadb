"""The result of a run: what result.json holds, and the lines that people read."""

import os
import platform
import statistics
import sys
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax
import numpy as np

from pnn_jax.evaluate import Evaluation, per_class_table
from pnn_jax.run.provenance import provenance
from pnn_jax.stats import wilson_interval

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class DataSummary(NamedTuple):
    """What a run records of its data set.

    Attributes:
        name: of the set.
        digest: of its images and labels.
        train_examples: number of training examples.
        test_examples: number of test examples.
        class_names: name of each label.
        image_shape: [h, w, c] of every image.
        validation_examples: number of validation examples; 0 where there are none.
    """

    name: str
    digest: str
    train_examples: int
    test_examples: int
    class_names: tuple[str, ...]
    image_shape: tuple[int, ...]
    validation_examples: int = 0


def evaluated_split(metrics: dict) -> str:
    """What a line of metrics.jsonl was evaluated on: 'validation' or 'test'."""
    return 'validation' if 'validation_accuracy' in metrics else 'test'


def evaluation_result(evaluation: Evaluation, class_names: tuple[str, ...]) -> dict:
    """The exact test result as JSON: accuracies are fractions, the interval is Wilson's at 95%."""
    result = {
        'final_test_correct': evaluation.num_correct,
        'final_test_count': evaluation.count,
        'final_test_accuracy': evaluation.accuracy,
        'final_test_interval_95': list(wilson_interval(evaluation.num_correct, evaluation.count)),
        'final_test_loss': evaluation.loss,
        'nonfinite': evaluation.nonfinite,
    }
    if len(class_names) > 10:
        result['final_test_top5_accuracy'] = float(np.mean(evaluation.top5))
    result['per_class'] = per_class_table(evaluation.correct, evaluation.labels, class_names)
    return result


def run_result(
    evaluation: Evaluation,
    data: DataSummary,
    config,
    counts: dict[str, int],
    history: list[dict],
    resumed_from: list[dict],
) -> dict:
    """What result.json holds: the exact counts, and with what, on what and by which code they were computed.

    Args:
        evaluation: of the final network on the test set.
        counts: from `count_variables`.
        history: the lines of metrics.jsonl.
        resumed_from: `circumstances` of the processes that trained the run before, where they differ from those of
            this one.
    """
    split = evaluated_split(history[-1])
    best = max(history, key=lambda line: line[f'{split}_accuracy'])
    selection = {f'max_{split}_accuracy': best[f'{split}_accuracy'], f'max_{split}_epoch': best['epoch']}
    if split == 'test':
        selection['max_test_note'] = 'the maximum over epochs was picked on the test set'
    else:
        selection['final_validation_accuracy'] = history[-1]['validation_accuracy']
    return {
        **evaluation_result(evaluation, data.class_names),
        **selection,
        'model': config.model.name,
        'parameters': counts,
        'seed': config.seed,
        'mask_seed': config.mask_seed,
        'epochs': len(history),
        'dataset': {name: value for name, value in data._asdict().items() if name != 'class_names'},
        'device': describe_devices(),
        'seconds': sum(line['seconds'] for line in history),  # of an interrupted epoch, from where it was resumed
        'code': provenance(),
        'versions': versions(),
        'resumed_from': resumed_from,
        'command': ' '.join(sys.argv),
    }


def circumstances() -> dict:
    """What may change the numbers of a run besides its config: digest of the code, devices, versions."""
    return {'code': provenance()['sha256'], 'device': describe_devices(), 'versions': versions()}


def versions() -> dict[str, str]:
    """The versions of Python and of the libraries that compute."""
    return {'python': platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def summarise_seeds(results: list[dict]) -> dict:
    """Mean and standard deviation of the accuracies of several seeds' results."""
    accuracies = [result['final_test_accuracy'] for result in results]
    return {
        'num_seeds': len(results),
        'mean_final_test_accuracy': statistics.fmean(accuracies),
        'sd_final_test_accuracy': statistics.stdev(accuracies),
        'seeds': results,
    }


def describe_run(
    say: Callable[[str], None], config, data: DataSummary, counts: dict[str, int], *, epochs_done: int
) -> None:
    """Says what is trained on what, in one to three lines."""
    validation = f', {data.validation_examples:,} validation' if data.validation_examples else ''
    say(
        f'{config.model.name}: {counts["trained"]:,} trained values, {counts["masks"]:,} in noise masks; '
        f'{data.name}: {data.train_examples:,} training{validation} and {data.test_examples:,} test images; '
        f'{describe_devices()}'
    )
    if config.batch_size % jax.device_count():
        say(
            f'note: a batch of {config.batch_size} cannot be divided equally over {jax.device_count()} devices, so '
            'each of them computes the whole batch'
        )
    if epochs_done:
        say(f'resuming after epoch {epochs_done}')


def describe_devices() -> str:
    """'4 x NVIDIA H100'."""
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'


def describe(result: dict) -> str:
    """One line: '352 of 360 correct, 97.8%, 95% CI 95.7-98.9%'."""
    low, high = result['final_test_interval_95']
    line = (
        f'{result["final_test_correct"]} of {result["final_test_count"]} correct, '
        f'{100 * result["final_test_accuracy"]:.1f}%, 95% CI {100 * low:.1f}-{100 * high:.1f}%'
    )
    if 'final_test_top5_accuracy' in result:
        line += f', top-5 {100 * result["final_test_top5_accuracy"]:.1f}%'
    if result['nonfinite']:
        line += f'; {result["nonfinite"]} with logits that are not finite, counted as wrong'
    return line


def describe_classes(result: dict) -> str:
    """A line for each class: name, correct of count."""
    width = max(len(name) for name in result['per_class'])
    lines = []
    for name, row in result['per_class'].items():
        share = f'{100 * row["correct"] / row["count"]:5.1f}%' if row['count'] else '   - '
        lines.append(f'  {name:{width}}  {row["correct"]:5d} of {row["count"]:5d}  {share}')
    return '\n'.join(lines)


def describe_run_result(result: dict, workdir: str | os.PathLike) -> str:
    """The last lines of a run: the classes, the exact accuracy, the plot; of several seeds, mean and deviation."""
    if 'seeds' in result:
        mean, deviation = 100 * result['mean_final_test_accuracy'], 100 * result['sd_final_test_accuracy']
        return f'{result["num_seeds"]} seeds: {mean:.2f}% +- {deviation:.2f} (standard deviation); results in {workdir}'
    lines = [describe_classes(result), describe(result)]
    plot = os.path.join(workdir, 'curves.png')
    return '\n'.join([*lines, *([f'plot: {plot}'] if os.path.exists(plot) else [])])


def describe_epoch(metrics: dict, num_epochs: int) -> str:
    """One line of an epoch's metrics, as they stand in metrics.jsonl."""
    split = evaluated_split(metrics)
    correct, count, accuracy = (metrics[f'{split}_{name}'] for name in ('correct', 'count', 'accuracy'))
    speed = metrics['images_per_second']  # None: this epoch was trained by an earlier process
    return (
        f'epoch {metrics["epoch"]}/{num_epochs}  lr {metrics["learning_rate"]:.3g}  '
        f'train loss {metrics["train_loss"]:.4f} accuracy {100 * metrics["train_accuracy"]:.2f}%  '
        f'{split} {correct}/{count} = {100 * accuracy:.2f}%{"" if speed is None else f"  {speed:,.0f} images/s"}'
    )
