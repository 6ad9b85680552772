"""``trainer.logger``: what a run logs to besides its CSV file, by Lightning's loggers."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rmt.files import write_json
from rmt.modeling.saved import without_paths
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe, TrainerConfig
from rmt.untrusted import Field, read_json_file

#: Folder of all logs in that of a run, and what a service calls the run, to continue it.
LOGS, IDS = "logs", "ids.json"
#: Project of Weights & Biases and experiment of MLflow, unless the environment names another.
PROJECT = "rmt"
_SERVER = "MLFLOW_TRACKING_URI"


class WandbRun(WandbLogger):
    """Weights & Biases; its run ends with the training, so that the process can begin another."""

    def finalize(self, status: str) -> None:
        """End the run."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=int(status != "success"))


class MLFlowRun(MLFlowLogger):
    """MLflow; after the run, the environment names the tracking server that it named before."""

    def __init__(self, **options: Any) -> None:
        self._before = os.environ.get(_SERVER)
        super().__init__(**options)

    def finalize(self, status: str = "success") -> None:
        """End the run; the logger has set the variable for the whole process."""
        super().finalize(status)
        os.environ.pop(_SERVER, None)
        if self._before is not None:
            os.environ[_SERVER] = self._before


def check(config: TrainerConfig) -> None:
    """Raise ``ValueError`` with the line that installs the library of a logger if it is missing."""
    for name in _besides_csv(config):
        if find_spec(name) is None:
            raise ValueError(
                f"trainer.logger {name} needs {name}: pip install 'rmt-vision[{name}]'"
            )


def make(config: TrainerConfig, run: Path) -> list[Logger]:
    """Return the loggers of a run: those of its recipe, and always CSV, which the report reads.

    Nothing is written or sent before the first is used.

    Args:
        config: of the recipe.
        run: folder of the run.
    """
    known = _ids(run)
    return [_MAKERS[name](run, known.get(name)) for name in ("csv", *_besides_csv(config))]


@rank_zero_only
def begin(used: Iterable[Logger], recipe: Recipe, run: Path) -> None:
    """Begin the run in each service or continue it; a new one gets the recipe, without paths.

    Args:
        used: what :func:`make` returned.
        recipe: of the run.
        run: its folder, in which the names that the services have for it are kept.
    """
    known = _ids(run)
    for logger in used:
        if not isinstance(logger, WandbLogger | MLFlowLogger):
            continue
        (run / LOGS).mkdir(exist_ok=True)  # else wandb takes the system's temporary folder
        name = "wandb" if isinstance(logger, WandbLogger) else "mlflow"
        if name not in known:
            about = without_paths({"config": {}, "info": {"recipe": as_dict(recipe)}})
            logger.log_hyperparams(about["info"]["recipe"])
            write_json(run / LOGS / IDS, known := known | {name: logger.version})


def _besides_csv(config: TrainerConfig) -> list[str]:
    given = (config.logger,) if isinstance(config.logger, str) else config.logger
    return [name for name in dict.fromkeys(given) if name != "csv"]


def _ids(run: Path) -> dict[str, str]:
    path = run / LOGS / IDS
    if not path.is_file():
        return {}
    content = Field.of(read_json_file(path), str(path))
    return {name: content[name].text() for name in content.mapping()}


def _wandb(run: Path, known: str | None) -> Logger:
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    mode = os.environ.get("WANDB_MODE")
    return WandbRun(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=run.name,
        id=known or uuid.uuid4().hex[:8],
        save_dir=run / LOGS,
        offline=mode is None and not _logged_in_to_wandb(),
    )


def _logged_in_to_wandb() -> bool:
    """Return whether there is a key of Weights & Biases, where its ``wandb login`` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc(os.path.expanduser(path)).authenticators(host):
                return True
        except (OSError, NetrcParseError):
            continue
    return False


def _mlflow(run: Path, known: str | None) -> Logger:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    logs = (run / LOGS).absolute()
    own = os.environ.get(_SERVER)
    return MLFlowRun(
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
        run_name=run.name,
        # Newer versions of MLflow refuse a folder of files.
        tracking_uri=own or f"sqlite:///{logs / 'mlflow.db'}",
        artifact_location=None if own else (logs / "mlflow").as_uri(),
        run_id=known,
    )


#: Name in ``trainer.logger`` -> the logger of a run that a service may know already.
_MAKERS: dict[str, Callable[[Path, str | None], Logger]] = {
    "csv": lambda run, known: CSVLogger(str(run), name=LOGS),
    "tensorboard": lambda run, known: TensorBoardLogger(str(run), name=LOGS, version="tensorboard"),
    "wandb": _wandb,
    "mlflow": _mlflow,
}
