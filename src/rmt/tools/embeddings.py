"""One vector per image, in a Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from rmt.tools.predict import Embedder, fault, named_weights
from rmt.tools.sources import find_files, open_sources

#: Rows that are written together.
_ROWS = 1024


def embed_files(
    sources: Iterable[str | Path],
    checkpoint: str | Path | None,
    file: str | Path,
    *,
    device: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Write a vector for each image: a classifier's features, or the mean of a backbone's last map.

    The table has the columns ``image`` (the path), ``frame`` (of a video, else null) and
    ``embedding`` (a list of float32). Images that cannot be read have no row. If the process is
    interrupted, the table holds the images up to then.

    Args:
        sources: as :func:`rmt.tools.predict.predict_files` takes them.
        checkpoint: what :func:`rmt.load` reads; None takes the weights of this package.
        file: ``.parquet`` file to write.
        device: where to run.
        batch_size: most images at once; None takes the task's.
        **options: of the model's task, such as ``min_size`` of a segmenter.

    Yields:
        ``{"image", "features"}`` with the length of the vector, or ``{"image", "error"}``.

    Raises:
        ValueError: if pyarrow is missing, there is no image, or the model returns unpooled logits.
    """
    arrow, parquet = _library()
    paths = find_files([*sources])
    embedder = Embedder.from_checkpoint(named_weights(checkpoint), device=device, **options)
    columns = {"image": arrow.string(), "frame": arrow.int64()}
    schema = arrow.schema(columns | {"embedding": arrow.list_(arrow.float32())})
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with parquet.ParquetWriter(file, schema) as writer:
        try:
            for outcome in embedder.run(
                open_sources(paths), lambda source: source.read(), batch_size=batch_size
            ):
                record = {"image": str(outcome.item.path)} | outcome.item.about
                if outcome.result is None:
                    yield record | {"error": fault(outcome.item.path, outcome.error)}
                    continue
                vector = outcome.result["embedding"]
                rows.append(
                    {"image": _text(record["image"]), "frame": record.get("frame")}
                    | {"embedding": vector}
                )
                if len(rows) == _ROWS:
                    writer.write_table(arrow.Table.from_pylist(rows, schema))
                    rows.clear()
                yield record | {"features": len(vector)}
        finally:
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def _text(name: str) -> str:
    """Return a name as Unicode; bytes that are none become escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _library() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(
            "writing Parquet files needs pyarrow: pip install 'rmt-vision[parquet]'"
        ) from error
    return pyarrow, parquet
