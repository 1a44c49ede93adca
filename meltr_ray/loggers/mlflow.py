"""MLflow: an experiment a sweep, a run a trial, at `MLFLOW_TRACKING_URI` or, without one, in the file store `<sweep>/mlruns`."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from meltr_ray.errors import ConfigError, check, first_line, shown
from meltr_ray.loggers.logger import Logger, Tracked, token

SERVER, FILE_STORE = "MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"
MOST = {"params": 100, "metrics": 1000}
"""What MLflow takes at a time."""
LONGEST = 6000
"""Letters of a parameter."""
TAG = "meltr.id"
STATUS = {"finished": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}


class MLflow(Logger):
    package = "mlflow-skinny"

    @classmethod
    def check(cls) -> None:
        uri = os.environ.get(SERVER, "")
        if uri.startswith(("http://", "https://")):
            patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
            before = {name: os.environ.get(name) for name in patience}
            os.environ.update(patience)
            try:
                client(Path()).search_experiments(max_results=1)
            except Exception as error:  # whatever it is, no trial would be shown there
                raise ConfigError(f"{SERVER}={shown(uri)}: no MLflow server answers there ({first_line(error)}); "
                                  "start it, give another, or leave mlflow out of loggers") from None  # fmt: skip
            finally:
                for name, value in before.items():
                    os.environ.pop(name) if value is None else os.environ.update({name: value})
            return
        check(uri == "" or uri.startswith(("file:", "/", "databricks")), SERVER, uri,
              "mlflow-skinny has no such store; give the address of a server or a folder, or unset it")  # fmt: skip

    @classmethod
    def begin(cls, folder: Path) -> None:
        store = client(folder)
        if store.get_experiment_by_name(experiment(folder)) is None:
            store.create_experiment(experiment(folder))

    def __init__(self, tracked: Tracked):
        self.client, self.keys = client(tracked.folder), dict[str, str]()
        self.before: dict[str, set[tuple[int, float]]] = {}
        place = self.client.get_experiment_by_name(experiment(tracked.folder)).experiment_id
        known = self.client.search_runs([place], f"tags.`{TAG}` = '{tracked.id}'", max_results=1)
        self.is_new = not known
        if known:
            self.run = known[0].info.run_id
            self.client.update_run(self.run, "RUNNING")
            return
        tags = {TAG: tracked.id, "meltr.arm": tracked.arm, "meltr.phase": tracked.phase}
        self.run = self.client.create_run(place, run_name=tracked.trial, tags=tags).info.run_id
        self.send("params", [_param(name, value) for name, value in tracked.settings.items()])

    def add(self, step: int, numbers: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [(self.key(name), value) for name, value in numbers.items() if (step, value) not in self.seen(self.key(name))]
        self.send("metrics", [Metric(key, value, now, step) for key, value in new])

    def seen(self, key: str) -> set[tuple[int, float]]:
        """Step and number of what an earlier attempt has shown: MLflow would keep both."""
        if self.is_new:
            return set()
        if key not in self.before:
            self.before[key] = {(metric.step, metric.value) for metric in self.client.get_metric_history(self.run, key)}
        return self.before[key]

    def key(self, name: str) -> str:
        """Its own, where two names become one for MLflow."""
        if name not in self.keys:
            found = as_key(name)
            while found in self.keys.values():
                found += "_"
            self.keys[name] = found
        return self.keys[name]

    def send(self, kind: str, entries: list[Any]) -> None:
        for first in range(0, len(entries), MOST[kind]):
            self.client.log_batch(self.run, **{kind: entries[first : first + MOST[kind]]})

    def close(self, status: str) -> None:
        self.client.set_terminated(self.run, STATUS[status])


def client(folder: Path) -> Any:
    """Of the server that the environment names, else of a file store in `folder`, which MLflow wants to be asked for by name."""
    uri = os.environ.get(SERVER) or f"file://{folder / 'mlruns'}"
    if not uri.startswith(("http", "databricks")):
        os.environ[FILE_STORE] = "true"
    from mlflow.tracking import MlflowClient

    return MlflowClient(uri)


def experiment(folder: Path) -> str:
    return f"{folder.name}-{token(folder)}"


def as_key(name: str) -> str:
    """A name of a metric as MLflow takes it: `R@10` is `R_at_10`."""
    return re.sub(r"[^\w\-. /]", "_", name.replace("@", "_at_"))


def _param(name: str, value: Any) -> Any:
    from mlflow.entities import Param

    return Param(as_key(name), str(value)[:LONGEST])
