"""MLflow: `config.log.mlflow`. Its own environment variables say where to: MLFLOW_TRACKING_URI, ..."""

import os
import time
from typing import Any

from pnn_jax.run.workdir import Workdir, flat_fields
from pnn_jax.run.writers.base import FinishedRun, LogWriter, kept_id, numbers_of, plots_of


class MlflowWriter(LogWriter):
    """Numbers of every epoch, and at the end the plots, in the experiment MLFLOW_EXPERIMENT_NAME (or pnn_jax).

    Without MLFLOW_TRACKING_URI, MLflow keeps them in the file mlflow.db of the current folder; `mlflow ui` shows them.
    A resumed run is the same run there: its id is kept in the file mlflow_id of the workdir.
    """

    switch, library = 'mlflow', 'mlflow'

    def __init__(self, workdir: Workdir, config):
        super().__init__(workdir, config)
        self.client: Any = None  # made at the first epoch
        self.run_id = ''
        self.status = 'KILLED'

    def epoch(self, metrics: dict) -> None:
        from mlflow.entities import Metric

        if self.client is None:
            self._begin()
        now = int(1000 * time.time())
        numbers = [Metric(name, value, now, metrics['step']) for name, value in numbers_of(metrics).items()]
        self.client.log_batch(self.run_id, metrics=numbers)

    def _begin(self) -> None:
        import mlflow

        self.client = mlflow.MlflowClient()
        self.run_id = kept_id(self.workdir.path / 'mlflow_id', self._create_run)
        self.client.update_run(self.run_id, status='RUNNING')

    def _create_run(self) -> str:
        from mlflow.entities import Param

        name = os.environ.get('MLFLOW_EXPERIMENT_NAME', 'pnn_jax')
        experiment = self.client.get_experiment_by_name(name)
        experiment_id = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        run_id = self.client.create_run(experiment_id, run_name=self.workdir.path.name).info.run_id
        fields = [Param(field, str(value)) for field, value in flat_fields(self.config).items()]
        self.client.log_batch(run_id, params=fields)
        return run_id

    def finish(self, run: FinishedRun) -> None:
        if self.client is None:  # no epoch was left to be done
            return
        for path in plots_of(self.workdir):
            self.client.log_artifact(self.run_id, str(path), 'plots')
        self.status = 'FINISHED'

    def close(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run_id, self.status)
