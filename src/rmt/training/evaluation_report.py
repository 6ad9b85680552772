"""The report of an evaluation: plots, a table of the images, and a page that shows them."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from rmt.data.loaders import DataModule
from rmt.files import write_atomically, write_json
from rmt.messages import printable
from rmt.modeling.pretrained import Pretrained, in_use
from rmt.task import get_task

PAGE = "index.html"
_STYLE = (
    "body{font-family:sans-serif;max-width:70em;margin:2em auto;padding:0 1em}"
    "img{max-width:100%}td,th{text-align:left;padding:.1em 1em .1em 0}figure{margin:2em 0}"
)


def write_report(
    model: Pretrained, data: DataModule[Any, Any], record: dict[str, Any], folder: Path
) -> dict[str, str]:
    """Write plots, ``images.csv``, ``metrics.json`` and ``index.html`` to a folder.

    The test images are predicted once more for it, in this process.

    Args:
        model: that was evaluated.
        data: that it was evaluated on.
        record: of the evaluation.
        folder: made if absent; files of an earlier report are replaced.

    Returns:
        File name -> what it shows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with in_use(model, accelerator=data.recipe.trainer.accelerator):
        shown = get_task(model.task).prediction().draw_evaluation(model, data, folder)
    write_json(folder / "metrics.json", record)
    shown["metrics.json"] = "the metrics, and what was evaluated on what"
    text = _page(record, shown)
    write_atomically(folder / PAGE, lambda path: path.write_text(text, encoding="utf-8"))
    return {PAGE: "all of this on one page"} | shown


def _page(record: dict[str, Any], shown: dict[str, str]) -> str:
    """Return the report as a page of HTML, which refers to the plots beside it."""
    source, data = record["checkpoint"]["path"], record["data"]
    numbers = "".join(
        f"<tr><td>{_text(name)}</td><td>{value:.2f}</td></tr>"
        for name, value in record["metrics"].items()
    )
    plots = "".join(
        f'<figure><img src="{name}" alt="{_text(what)}"><figcaption>{_text(what)}</figcaption>'
        "</figure>"
        for name, what in shown.items()
        if name.endswith(".png")
    )
    files = "".join(
        f'<li><a href="{name}">{name}</a>: {_text(what)}</li>'
        for name, what in shown.items()
        if not name.endswith(".png")
    )
    title = _text(record["recipe"].get("title") or "Evaluation")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>"
        f"<p>{_text(source)} on {data['images']} images of {_text(data['root'] or 'the data')}, "
        f"{_text(record['date'])}; rmt {_text(record['versions']['rmt'])}.</p>"
        f"<table>{numbers}</table><ul>{files}</ul>{plots}</body></html>\n"
    )


def _text(value: object) -> str:
    """Return text that may come from a file, so that it is shown and nothing else."""
    return escape(printable(value, limit=1000))
