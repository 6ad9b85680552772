"""`trainer.logger`: what is written in every task, what services get, and what is missing."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from rmt.recipes.schema import LOGGERS, TrainerConfig
from rmt.training import loggers
from rmt.training.dry_run import dry_run
from rmt.training.fit import fit
from tasks import CASES, Case


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_csv_and_tensorboard(case: Case, tmp_path: Path) -> None:
    """Both have every step, before and after the run was resumed."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    root = case.data(tmp_path / "data", 4)
    run = tmp_path / "run"
    for epochs in (1, 2):
        recipe = case.recipe_for(
            root, schedule__epochs=epochs, trainer__logger="[csv,tensorboard]", trainer__log_every=1
        )
        fit(recipe, run, resume="auto")
    steps = []
    for file in sorted(run.glob("logs/version_*/metrics.csv")):
        with file.open(newline="") as rows:
            steps += [int(row["step"]) for row in csv.DictReader(rows) if row["loss"]]
    assert steps == list(range(len(steps)))
    assert len(steps) in (2, 4)
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == steps
    assert not (run / "logs" / loggers.IDS).exists()


def test_the_default_is_csv_alone(tmp_path: Path) -> None:
    (only,) = loggers.make(TrainerConfig(), tmp_path)
    assert type(only).__name__ == "CSVLogger"
    both = loggers.make(TrainerConfig(logger=("tensorboard", "tensorboard")), tmp_path)
    assert [type(own).__name__ for own in both] == ["CSVLogger", "TensorBoardLogger"]
    with pytest.raises(ValueError, match=r"trainer\.logger is 'wanbd'; did you mean 'wandb'"):
        TrainerConfig(logger=("csv", "wanbd"))


@pytest.mark.parametrize("name", [name for name in LOGGERS if name != "csv"])
def test_a_missing_library(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said by the run and by the dry run, before anything is read or written."""
    monkeypatch.setattr(loggers, "find_spec", lambda library: None)
    case = CASES["classification"]
    recipe = case.recipe_for(tmp_path / "nowhere", trainer__logger=name)
    message = rf"trainer\.logger {name} needs {name}: pip install 'rmt-vision\[{name}\]'"
    with pytest.raises(ValueError, match=message):
        fit(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=message):
        dry_run(case.recipe, [f"--trainer.logger={name}", "--model.name=rmt_nano"])


class Services:
    """Stands for the libraries of Weights & Biases and MLflow: what their loggers are given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: dict[str, list[dict[str, Any]]] = {"wandb": [], "mlflow": []}
        self.recipes: dict[str, list[dict[str, Any]]] = {"wandb": [], "mlflow": []}
        for name, kind in (("wandb", WandbLogger), ("mlflow", MLFlowLogger)):
            monkeypatch.setattr(kind, "__init__", self.recorder(name))
            monkeypatch.setattr(
                kind,
                "log_hyperparams",
                lambda own, content, at=name: self.recipes[at].append(content),
            )
            monkeypatch.setattr(kind, "version", property(lambda own: own.given))

    def recorder(self, name: str) -> Any:
        def init(own: Any, **options: Any) -> None:
            self.made[name].append(options)
            own.given = options.get("id") or options.get("run_id") or "new"

        return init


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Services:
    for variable in (
        "WANDB_API_KEY",
        "WANDB_MODE",
        "WANDB_PROJECT",
        "MLFLOW_TRACKING_URI",
        "NETRC",
    ):
        monkeypatch.delenv(variable, raising=False)
    # The loggers turn off what their libraries would send.
    for variable in ("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Services(monkeypatch)


def test_services(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is begun once and then continued; the services get the recipe without paths."""
    recipe = CASES["detection"].recipe_for(tmp_path / "data", trainer__logger="[wandb,mlflow]")
    run = tmp_path / "run"
    run.mkdir()
    for _ in range(2):
        used = loggers.make(recipe.trainer, run)
        assert [type(own).__name__ for own in used] == ["CSVLogger", "WandbRun", "MLFlowRun"]
        loggers.begin(used, recipe, run)
    first, again = services.made["wandb"]
    assert first == again
    assert len(first.pop("id")) == 8
    assert first == {"project": "rmt", "name": "run", "save_dir": run / "logs", "offline": True}
    first, again = services.made["mlflow"]
    assert (first["run_id"], again["run_id"]) == (None, "new")
    assert first["tracking_uri"] == f"sqlite:///{run / 'logs' / 'mlflow.db'}"
    assert first["artifact_location"] == (run / "logs" / "mlflow").as_uri()
    assert (first["experiment_name"], first["run_name"]) == ("rmt", "run")
    assert set(json.loads((run / "logs" / "ids.json").read_text())) == {"wandb", "mlflow"}
    for (content,) in services.recipes.values():
        assert content["data"]["root"] == "data"
        assert content["optimizer"]["lr"] == recipe.optimizer.lr
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///own.db")
    loggers.make(recipe.trainer, run)
    assert services.made["mlflow"][-1]["tracking_uri"] == "sqlite:///own.db"
    assert services.made["mlflow"][-1]["artifact_location"] is None


def test_runs_are_sent_if_the_user_is_logged_in(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline() -> bool:
        loggers.make(TrainerConfig(logger="wandb"), tmp_path / "run")
        return services.made["wandb"][-1]["offline"]

    assert offline()
    (tmp_path / ".netrc").write_text("not a netrc")
    assert offline()
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x")
    assert not offline()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert offline()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert not offline()
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.setenv("WANDB_MODE", "online")  # the library itself obeys this
    assert not offline()
