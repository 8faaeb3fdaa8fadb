"""The plot that a run leaves: loss, accuracy and learning rate over epochs."""

import matplotlib

matplotlib.use('Agg')

import matplotlib.pyplot as plt

from pnn_jax.run.result import evaluated_split


def plot_curves(history: list[dict], path: str, title: str) -> None:
    """Draws `history`, the lines of metrics.jsonl, into a PNG file."""
    epochs, split = [line['epoch'] for line in history], evaluated_split(history[-1])
    column = lambda name, factor=1.0: [factor * line[name] for line in history]
    figure, (loss, accuracy, rate) = plt.subplots(1, 3, figsize=(12, 3.4), layout='constrained')
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
    figure.savefig(path, dpi=110)
    plt.close(figure)
