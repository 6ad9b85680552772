"""Evaluation of weights on a data set, with a record of what was evaluated on what."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rmt import recipes
from rmt.data.classes import check_classes
from rmt.data.loaders import DataModule, loading_faults_named
from rmt.data.splits import Samples
from rmt.deployment.load import engine_of, load_with_engine, main_file
from rmt.files import digest_of_file, for_people
from rmt.modeling.pretrained import Pretrained
from rmt.recipes.schema import Ema, Recipe
from rmt.task import get_task
from rmt.training.data_record import DataRecord
from rmt.training.evaluation_report import write_report
from rmt.training.lightning import LoopData, new_trainer, quiet
from rmt.training.module import TrainingModule
from rmt.training.progress import progress
from rmt.training.run_folder import DATA, RECIPE, read_recipe
from rmt.version import __version__
from rmt.weights.identify import Weights


def evaluate(
    source: str | Path | Pretrained,
    *,
    overrides: Sequence[str] = (),
    weights: Weights | None = None,
    recipe: Recipe | None = None,
    engine: str | None = None,
    knn: int = 0,
) -> dict[str, Any]:
    """Evaluate weights on the test split of a data set (the validation split if there is no test).

    All images of a data set without splits are evaluated if the model was not trained by a recipe:
    it has seen none of them.

    Args:
        source: a model, anything :func:`rmt.load` reads, or an exported file.
        overrides: ``--data.root DIR`` and other recipe keys.
        weights: ``raw`` or ``ema`` if a file holds both; None for the better ones.
        recipe: how to evaluate; None takes the recipe that was saved with the weights, or the
            task's defaults for a file of the release.
        engine: what runs the network, see :func:`rmt.deployment.load.load_with_engine`; not for a
            model that is loaded already.
        knn: if positive, evaluate a classifier's features by this many nearest training images.

    Returns:
        Metric name -> value, exact over all images and processes.

    Raises:
        ValueError: if the classes of data and weights differ, or ``knn`` is given for a detector or
            segmenter.
    """
    return _evaluate(source, overrides, weights, recipe, engine=engine, knn=knn).metrics


def record_evaluation(
    source: str | Path,
    *,
    overrides: Sequence[str] = (),
    weights: Weights | None = None,
    engine: str | None = None,
    knn: int = 0,
    report: Path | None = None,
) -> dict[str, Any]:
    """Evaluate a checkpoint as :func:`evaluate` does, and record what was evaluated on what.

    Args:
        source: anything :func:`rmt.load` reads, or an exported file.
        overrides: ``--data.root DIR`` and other recipe keys.
        weights: ``raw`` or ``ema`` if a file holds both; None for the better ones.
        engine: as :func:`evaluate` takes it.
        knn: if positive, the number of nearest neighbours.
        report: folder for plots, a table of the images and a page with both; None writes nothing.

    Returns:
        ``checkpoint`` and ``data`` with their SHA-256, ``metrics`` of six digits, ``date`` (UTC),
        ``machine``, ``engine``, the arguments (``knn``, ``overrides``), the resulting ``recipe``,
        and ``versions``; an empty dict in all processes but the first. The digest of the checkpoint
        is that of its file; that of the data covers each image's name, size in bytes and labels.
    """
    if report is not None and knn:
        raise ValueError("--report shows the model's predictions, which --knn does not use")
    done = _evaluate(source, overrides, weights, None, engine=engine, knn=knn)
    model, metrics, recipe, samples = done.model, done.metrics, done.recipe, done.samples
    if getattr(rank_zero_only, "rank", 0):  # set by Lightning's launchers, and not declared
        return {}
    file = digest_of_file(main_file(source))
    record = {
        "checkpoint": {
            "path": str(source),
            "weights": model.info.get("weights", "raw"),
            "sha256": file,
        },
        "data": {
            "root": recipe.data.root,
            "images": len(samples),
            "unreadable": len(samples) - int(metrics.get("images", len(samples))),
            "sha256": samples.digest(),
        },
        "metrics": for_people(metrics),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": _machine(recipe),
        "engine": engine_of(model) or engine or "torch",
        "knn": knn,
        "overrides": list(overrides),
        "recipe": recipes.as_dict(recipe),
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")}
        | {"rmt": __version__, "python": platform.python_version()},
    }
    if report is not None and done.data is not None:
        write_report(model, done.data, record, report)
    return record


def evaluate_on(data: DataModule[Any, Any], model: Pretrained) -> dict[str, float]:
    """Evaluate a model on opened data; the model's mode is restored.

    Args:
        data: of the model's task; the recipe says how to evaluate.
        model: of the data's classes.

    Returns:
        Metric name -> value, exact over all images and processes.

    Raises:
        ValueError: if the model's classes are not the data's.
    """
    task, recipe = get_task(model.task), replace(data.recipe, ema=Ema())  # EMA is for training
    parts = task.training()
    check_classes(
        model.info.get("label_names"),
        data.classes,
        num_classes=model.num_classes,
        any_order=parts.any_class_order,
        same=parts.same_classes,
    )
    module = TrainingModule(task, recipe, model, data, train=False)
    was_training = model.training
    with quiet(), loading_faults_named():
        trainer = new_trainer(
            recipe.trainer, callbacks=[progress()], logger=False, enable_checkpointing=False
        )
        trainer.test(module, LoopData(data), verbose=False)
    model.train(was_training)
    return module.results["raw"]


@dataclass(frozen=True)
class _Evaluation:
    """What was evaluated, how and on what; ``data`` is None for the nearest neighbours."""

    model: Pretrained
    metrics: dict[str, Any]
    recipe: Recipe
    samples: Samples
    data: DataModule[Any, Any] | None = None


def _evaluate(
    source: str | Path | Pretrained,
    overrides: Sequence[str],
    weights: Weights | None,
    recipe: Recipe | None,
    *,
    engine: str | None,
    knn: int,
) -> _Evaluation:
    model = source if isinstance(source, Pretrained) else _load(source, weights, engine)
    task = get_task(model.task)
    if recipe is None:
        content = model.info.get("recipe") or task.default_recipe(model)
        content = {key: value for key, value in content.items() if key != "trainer"}
        recipe = recipes.resolve(task.recipe, content, overrides)
    if "recipe" not in model.info:  # not trained here: no image was held out from it
        recipe = replace(recipe, data=replace(recipe.data, val_fraction=1.0))
    if knn:
        evaluate_knn = task.training().knn
        if evaluate_knn is None:
            raise ValueError(
                f"--knn evaluates the features of a classifier; this model is for {model.task}"
            )
        metrics, samples = evaluate_knn(model, recipe, knn)
        return _Evaluation(model, metrics, recipe, samples)
    data = task.training().open_data(recipe, classes=model.info.get("label_names"))
    _divide_as_in_training(data, source)
    rank_zero_only(print)(data.describe())
    return _Evaluation(model, evaluate_on(data, model), recipe, data.splits.evaluated, data)


def _load(source: str | Path, weights: Weights | None, engine: str | None) -> Pretrained:
    """Load weights; those of a run's folder with the paths that only its recipe.yaml has."""
    model = load_with_engine(source, engine, weights=weights)
    own = Path(source) / RECIPE
    if own.is_file() and "recipe" in model.info:
        model.info["recipe"] = read_recipe(own)
    return model


def _divide_as_in_training(data: DataModule[Any, Any], source: str | Path | Pretrained) -> None:
    """Hold out the images that the run held out, if it is evaluated on its own data."""
    if isinstance(source, Pretrained) or not (Path(source) / DATA).is_file():
        return
    record, root = DataRecord.read(Path(source) / DATA), data.recipe.data.root
    if record.shares_images(DataRecord.of(data.splits, root)):
        data.splits = record.keep_division(data.splits, root)


def _machine(recipe: Recipe) -> str:
    if recipe.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        return f"{platform.machine()}, CPU"
    return f"{platform.machine()}, {torch.cuda.get_device_name()}"
