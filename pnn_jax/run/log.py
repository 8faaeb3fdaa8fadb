"""What a run tells its user: progress line, a line an epoch, TensorBoard, curves, and the result."""

import os
import platform
import statistics
import sys
import time
from importlib import metadata
from typing import NamedTuple

import jax
import rich.console
import rich.progress

from pnn_jax.errors import RunError
from pnn_jax.evaluate import Evaluation, per_class_table
from pnn_jax.run.provenance import provenance
from pnn_jax.run.workdir import Workdir
from pnn_jax.stats import wilson_interval

_PACKAGES = ('pnn-jax', 'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')


class DataSummary(NamedTuple):
    """What a run records of its data set."""

    name: str
    digest: str
    train_examples: int
    test_examples: int
    class_names: tuple[str, ...]


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
        result['final_test_top5_accuracy'] = float(evaluation.top5.mean())
    result['per_class'] = per_class_table(evaluation.correct, evaluation.labels, class_names)
    return result


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


def summarise_seeds(results: list[dict]) -> dict:
    """Mean and standard deviation of the accuracies of several seeds' results."""
    accuracies = [result['final_test_accuracy'] for result in results]
    return {
        'num_seeds': len(results),
        'mean_final_test_accuracy': statistics.fmean(accuracies),
        'sd_final_test_accuracy': statistics.stdev(accuracies),
        'seeds': results,
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # the project itself, run from its folder
        return 'not installed'


class RunLog:
    """Shows and records a run's progress; silent on every host but the first.

    On a terminal it keeps a progress line with loss, accuracy, speed and time left; elsewhere there is a line an epoch.
    The epochs' lines also go to `train.log` in the workdir.
    """

    def __init__(self, workdir: Workdir, config, data: DataSummary, counts: dict[str, int], *, primary: bool):
        self.workdir, self.config, self.data, self.counts = workdir, config, data, counts
        self.primary = primary
        self.console = rich.console.Console(quiet=not primary, highlight=False, soft_wrap=True)
        self.bar = rich.progress.Progress(
            rich.progress.TextColumn('{task.description}'),
            rich.progress.BarColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self.console,
            disable=not (primary and self.console.is_terminal),
            transient=True,
        )
        self.writer = None

    def __enter__(self) -> 'RunLog':
        model, data = self.config.model, self.data
        self.say(
            f'{model.name}: {self.counts["trained"]:,} trained values, {self.counts["masks"]:,} in noise masks; '
            f'{data.name}: {data.train_examples:,} training and {data.test_examples:,} test images; '
            f'{jax.device_count()} x {jax.devices()[0].device_kind}'
        )
        if self.config.batch_size % jax.device_count():
            self.say(
                f'note: a batch of {self.config.batch_size} does not divide by {jax.device_count()} devices, so that '
                'each of them computes the whole of it'
            )
        done = len(self.workdir.history)
        if done:
            self.say(f'going on after epoch {done}')
        if self.primary and self.config.log.tensorboard:
            import tensorboardX  # here, because it imports torch where that is installed

            step = self.workdir.history[-1]['step'] if done else 0
            self.writer = tensorboardX.SummaryWriter(self.workdir.path, purge_step=step + 1, write_to_disk=True)
        self.bar.start()
        self.task = self.bar.add_task('starting', total=None)
        return self

    def __exit__(self, *exception) -> None:
        self.bar.stop()
        if self.writer is not None:
            self.writer.close()

    def say(self, text: str) -> None:
        """Prints a line, and keeps it in train.log."""
        self.console.print(text)
        if self.primary:
            path = os.path.join(self.workdir.path, 'train.log')
            try:
                with open(path, 'a', encoding='utf-8') as file:
                    file.write(f'{time.strftime("%Y-%m-%d %H:%M:%S")} {text}\n')
            except OSError as error:
                raise RunError(f'{path} not written: {error.strerror}') from error

    def progress(self, step: int, total_steps: int, train: dict, images_per_second: float) -> None:
        """Moves the progress line to `step` of `total_steps`."""
        text = f'loss {train["loss"]:.3f}  accuracy {100 * train["accuracy"]:.1f}%  {images_per_second:,.0f} images/s'
        self.bar.update(self.task, completed=step, total=total_steps, description=text)

    def epoch(self, line: dict) -> None:
        """Reports a finished epoch: the line that went into metrics.jsonl."""
        self.say(
            f'epoch {line["epoch"]}/{self.config.num_epochs}  lr {line["learning_rate"]:.3g}  '
            f'train loss {line["train_loss"]:.4f} accuracy {100 * line["train_accuracy"]:.2f}%  '
            f'test {line["test_correct"]}/{line["test_count"]} = {100 * line["test_accuracy"]:.2f}%  '
            f'{line["images_per_second"]:,.0f} images/s'
        )
        if self.writer is not None:
            for name, value in line.items():
                if name not in ('epoch', 'step'):
                    self.writer.add_scalar(name, value, line['step'])
            self.writer.flush()

    def finish(self, evaluation: Evaluation) -> dict:
        """Writes and returns result.json, and draws curves.png."""
        history = self.workdir.history
        best = max(history, key=lambda line: line['test_accuracy'])
        result = {
            **evaluation_result(evaluation, self.data.class_names),
            'max_test_accuracy': best['test_accuracy'],
            'max_test_epoch': best['epoch'],
            'max_test_note': 'the maximum over epochs was picked on the test set',
            'model': self.config.model.name,
            'parameters': self.counts,
            'seed': self.config.seed,
            'mask_seed': self.config.mask_seed,
            'epochs': len(history),
            'dataset': {name: value for name, value in self.data._asdict().items() if name != 'class_names'},
            'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
            'seconds': sum(line['seconds'] for line in history),
            'code': provenance(),
            'versions': {'python': platform.python_version()} | {name: _version(name) for name in _PACKAGES},
            'command': ' '.join(sys.argv),
        }
        if self.primary:
            from pnn_jax.run.curves import plot_curves  # here, because matplotlib takes long to import

            plot_curves(history, os.path.join(self.workdir.path, 'curves.png'), title=self.config.model.name)
            self.workdir.write_result(result)
        return result
