"""PNG files in the workdir: curves.png, and plots/ with the masks, the confusion matrix and the mistakes.

matplotlib takes a second to import, so it is imported when a run is done.
"""

import jax

from pnn_jax.run.writers.base import FinishedRun, LogWriter


class CurvesWriter(LogWriter):
    """curves.png: loss, accuracy and learning rate over the epochs."""

    def finish(self, run: FinishedRun) -> None:
        from pnn_jax.run import plots

        figure = plots.plot_curves(run.history, self.config.model.name)
        figure.savefig(self.workdir.path / 'curves.png', dpi=plots.DPI)


class PlotsWriter(LogWriter):
    """plots/masks.png, plots/confusion.png and plots/mistakes.png, each where the data set allows it."""

    switch = 'plots'

    def finish(self, run: FinishedRun) -> None:
        from pnn_jax.run import plots
        from pnn_jax.run.responses import first_responses

        figures = dict.fromkeys(('confusion', 'mistakes', 'masks'))
        figures['confusion'] = plots.plot_confusion(run.evaluation, run.class_names)
        if run.images is not None:
            figures['mistakes'] = plots.plot_mistakes(run.evaluation, run.images, run.class_names)
            # On the host, so that on several hosts the first one can compute it alone.
            responses = first_responses(run.model, jax.device_get(run.variables), run.preprocess(run.images[:1]))
            figures['masks'] = None if responses is None else plots.plot_masks(responses)
        folder = self.workdir.path / 'plots'
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            if figure is None:
                (folder / f'{name}.png').unlink(missing_ok=True)  # it is of an earlier, shorter run in this workdir
            else:
                figure.savefig(folder / f'{name}.png', dpi=plots.DPI)
