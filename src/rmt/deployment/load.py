"""Checkpoints and exported files to models that an engine runs."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from rmt.deployment.engines import (
    FILE_ENGINES,
    Engine,
    TorchExportEngine,
    check_engine,
    engine_of_archive,
)
from rmt.deployment.export import export
from rmt.messages import printable
from rmt.modeling.graphs import Exports
from rmt.modeling.pretrained import Pretrained
from rmt.modeling.saved import find_weights
from rmt.task import get_task
from rmt.weights.identify import Weights
from rmt.weights.load import load

log = logging.getLogger(__name__)
#: The graph of a folder that holds several.
MAIN_PART = "dense"


def load_with_engine(
    source: str | Path, engine: str | None = None, *, weights: Weights | None = None
) -> Pretrained:
    """Return a model that predicts by an engine.

    Args:
        source: anything :func:`rmt.load` reads; or an exported file, or a folder of such, which is
            enough by itself.
        engine: ``torch``, ``compile``, ``onnx``, ``openvino``, ``torch-export`` or ``aoti``. None
            takes torch for a checkpoint, and the runtime of its format for an exported file. For
            the last four, a checkpoint is exported to a temporary folder.
        weights: as in :func:`rmt.load`; not of exported files.

    Returns:
        A model of the task, in eval mode, to be called as any other, without losses or features.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the engine is unknown, its library is missing, or the file cannot be read or
            is for another engine; and for a ``.pt2`` file unless its engine is named, because
            opening it runs what is in it.
    """
    check_engine(engine)
    file = exported_file(source)
    if file is not None:
        if weights is not None:
            raise ValueError(f"an exported file has one set of weights: leave out {weights!r}")
        return open_exported(file, engine_for(file, engine))
    model = load(source, weights=weights)
    if engine in FILE_ENGINES:
        log.warning(
            "exporting %s for the engine %s first; `rmt export` writes a file that is ready at "
            "once",
            printable(source),
            engine,
        )
        dynamic = get_task(model.task).deployment().sizes_vary
        return through_file(model, engine, dynamic=dynamic)
    if engine == "compile":
        model = model.fuse()
        model.compile()
    return model


def exported_file(source: str | Path) -> Path | None:
    """Return the exported file that a user names, the main one of a folder; None for others."""
    path = Path(source)
    suffixes = {kind.suffix for kind in FILE_ENGINES.values()}
    if path.is_dir():
        found = (path / f"{MAIN_PART}{suffix}" for suffix in suffixes)
        return next((each for each in found if each.is_file()), None)
    if path.suffix.lower() not in suffixes:
        return None
    if not path.is_file():
        raise FileNotFoundError(f"no file or folder {printable(source)!r}")
    return path


def main_file(source: str | Path) -> Path:
    """Return the file whose digest tells a model: the weights, or the exported network."""
    return exported_file(source) or find_weights(source)


def engine_of(model: Pretrained) -> str | None:
    """Return the engine of a model whose networks are exported files; None for others."""
    engines = (each.name for each in model.modules() if isinstance(each, Engine))
    return next(engines, None)


def engine_for(file: Path, asked: str | None) -> type[Engine]:
    """Return the engine that reads a file.

    Raises:
        ValueError: if another one was asked for, or opening the file runs code and none was.
    """
    fitting = next(
        kind.name for kind in FILE_ENGINES.values() if kind.suffix == file.suffix.lower()
    )
    if file.suffix.lower() == TorchExportEngine.suffix:
        fitting = engine_of_archive(file)
        if asked is None:
            raise ValueError(
                f"{printable(file)} can run any code when it is opened, as every file of its kind. "
                f"If you trust its author, name the engine: --engine {fitting}"
            )
    if asked not in (None, fitting):
        raise ValueError(f"{printable(file)} is for the engine {fitting}, not {asked}")
    return FILE_ENGINES[fitting]


def open_exported(file: Path, kind: type[Engine]) -> Pretrained:
    """Return the model whose networks are exported files.

    Args:
        file: the only one, or the main one of a folder.
        kind: its engine.
    """
    first = kind(file)
    about = first.metadata
    engines = {about.parts[0]: first}
    for part in about.parts[1:]:
        engines[part] = kind(file.with_name(f"{part}{kind.suffix}"), regions=True)
        if engines[part].metadata.digest != about.digest:
            raise ValueError(f"{printable(file.parent)} holds parts of different models")
    exports = Exports(engines={**engines}, size=about.size, any_size=about.dynamic)
    return get_task(about.model.task).deployment().exported(about.model, exports).eval()


def through_file(model: Pretrained, engine: str, **options: Any) -> Pretrained:
    """Export a model to a temporary folder, and open that.

    Args:
        model: of any task.
        engine: of exported files.
        **options: of :func:`rmt.export`.
    """
    with tempfile.TemporaryDirectory(prefix="rmt-") as folder:
        report = export(model, Path(folder) / "model", format=engine, **options)
        return open_exported(exported_file(report.path) or report.path, FILE_ENGINES[engine])
