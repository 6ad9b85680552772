"""The folder of a run: its lock, its files, and which of them are undamaged."""

from __future__ import annotations

import os
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from rmt import recipes
from rmt.data.loaders import DataModule
from rmt.files import write_atomically
from rmt.recipes import as_dict
from rmt.recipes.schema import Recipe
from rmt.training.data_record import DataRecord
from rmt.weights.read import read_pickle

LAST, PREVIOUS, BEST = (f"checkpoints/{name}.ckpt" for name in ("last", "previous", "best"))
RECIPE, DATA, LOCK = "recipe.yaml", "data.json.gz", ".lock"

#: Keys that may change when a run is resumed; all others affect the trained weights.
MAY_CHANGE = (
    "title",
    "published",
    "data.root",
    "data.multi_label",  # the data decide, and may not change
    "data.num_workers",
    "data.cache_gb",
    "data.max_bad_samples",
    "data.allow_changed",
    "data.loader_timeout",
    "schedule.epochs",
    "schedule.steps",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.threads",
    "trainer.grad_checkpointing",
    "trainer.early_stopping_patience",
    "trainer.early_stopping_max_lr",
    "trainer.save_every",
    "trainer.evaluate_every",
    "trainer.log_every",
    "trainer.logger",
)


def read_recipe(name: str | Path) -> dict[str, Any]:
    """Read a recipe as :func:`rmt.recipes.read` does; that of a run finds its data from anywhere.

    A run stores ``data.root`` as it was given. If that is relative and the command runs in another
    folder, it is replaced by where the data were.

    Raises:
        ValueError: if there is no such recipe.
    """
    content = recipes.read(name)
    record = Path(name).with_name(DATA)
    if Path(name).name != RECIPE or not record.is_file():
        return content
    given = content["data"]["root"]  # a run writes every key
    if given and not os.path.isabs(given):
        there = DataRecord.read(record).root
        if there != os.path.abspath(given) and os.path.exists(there):
            content["data"]["root"] = there
    return content


class RunFolder:
    """The files of one run.

    Args:
        path: of the folder; it need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.last, self.previous, self.best = (self.path / n for n in (LAST, PREVIOUS, BEST))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other runs; it is created if it does not exist.

        Only the first process of a run takes the lock. A folder that was created for a run that
        did not begin is removed again.

        Raises:
            ValueError: if another run is in the folder, naming its process and machine.
        """
        if getattr(rank_zero_only, "rank", 0):  # set by Lightning's launchers, and not declared
            yield
            return
        is_new = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError as error:
            raise ValueError(f"{self.path} is a file; name a folder with --out") from error
        lock = self.path / LOCK
        with lock.open("a+") as file:
            self._take(file)
            try:
                self._clean()
                yield
            finally:
                if is_new and not self._has_run():
                    lock.unlink()
                    with suppress(OSError):  # it holds something after all
                        self.path.rmdir()

    def state_to_resume(self) -> tuple[Path, dict[str, Any]]:
        """Return the newest undamaged state of an interrupted run: its path, and what it records.

        If the last file is damaged, this is printed and the one before it is taken.

        Raises:
            ValueError: if there is no run, or all of its states are damaged.
        """
        candidates = [path for path in (self.last, self.previous) if path.exists()]
        if not candidates:
            raise ValueError(f"{self.path} holds no run to resume: there is no {LAST}")
        faults = []
        for path in candidates:
            try:
                kept = read_record(path)
            except ValueError as error:
                faults.append(str(error))
                continue
            if faults:
                print(f"{faults[0]}; continuing from {path.name}, the state before it")
            return path, kept
        raise ValueError(
            f"{'; '.join(faults)}. No state of this run can be resumed: restore one of the files "
            "from a copy, or start a new run with another --out"
        )

    def holds_best(self, kept: Mapping[str, Any]) -> bool:
        """Return whether the file of the best weights belongs to a state, or is newer."""
        if not self.best.exists():
            return False
        try:
            found = read_record(self.best)["best"]
        except ValueError:
            return False
        # The state before the last one may be older than the best weights, which are found again.
        return found["at"] >= kept["best"]["at"]

    def same_data(self, data: DataModule[Any, Any], *, resumed: bool) -> DataRecord:
        """Restore the splits of a resumed run, and return the record of the images.

        Args:
            data: of the run; its splits are replaced where images were held out.
            resumed: whether the run began before.

        Raises:
            ValueError: naming the changes, if the data have changed and the recipe forbids it.
        """
        config = data.recipe.data
        now = DataRecord.of(data.splits, config.root)
        if not (resumed and (self.path / DATA).exists()):
            return now
        before = DataRecord.read(self.path / DATA)
        before.check(now, allow_changed=config.allow_changed)
        kept = before.keep_division(data.splits, config.root)
        if kept is data.splits:  # a record of a million images takes seconds
            return now
        data.splits = kept
        return DataRecord.of(kept, config.root)

    def commit(self, recipe: Recipe, data: DataRecord) -> None:
        """Write the resolved recipe and the record of the data, which make the folder a run."""
        if getattr(rank_zero_only, "rank", 0):
            return
        data.write(self.path / DATA)
        text = yaml.safe_dump(as_dict(recipe), sort_keys=False)
        write_atomically(self.path / RECIPE, lambda path: path.write_text(text, encoding="utf-8"))

    def _take(self, file: IO[str]) -> None:
        try:
            import fcntl
        except ImportError:  # Windows has no lock that ends with its process
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "an unknown process"
            raise ValueError(
                f"{self.path} is in use by another run ({holder}); wait until it has ended, or "
                "name another folder with --out"
            ) from error
        except OSError:  # a file system without locks
            return
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
        file.flush()

    def _has_run(self) -> bool:
        return (self.path / RECIPE).exists() or self.last.exists()

    def _clean(self) -> None:
        """Remove the partial files of runs that were killed while writing."""
        for folder in (self.path, self.last.parent):
            for partial in folder.glob(".*.partial"):
                partial.unlink(missing_ok=True)


def read_record(path: Path) -> dict[str, Any]:
    """Return what a checkpoint records of its run, once all of it is verified by its checksums.

    The tensors are let go: several times the size of the network, they would stay in memory for
    the whole run.

    Raises:
        ValueError: if it is damaged, or not a checkpoint of a run.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch does not verify the checksums
    except (zipfile.BadZipFile, OSError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} does not match")
    content = read_pickle(path)
    kept = content.get("rmt")
    if not isinstance(kept, dict):
        raise ValueError(f"{path} is not a checkpoint of a training run")
    return kept


def check_unchanged(recipe: Recipe, kept: Mapping[str, Any]) -> None:
    """Raise if a resumed recipe differs from the run's in a key that must not change.

    Args:
        recipe: to continue with.
        kept: the recipe in the run's state.

    Raises:
        ValueError: naming each key with both values.
    """
    if kept.get("task") == recipe.task:  # a key that is newer than the run has its default there
        kept = as_dict(recipes.resolve(type(recipe), kept))
    now, before = _flat(as_dict(recipe)), _flat(kept)
    differing = [
        f"{key} is {now.get(key)!r}, the run has {before.get(key)!r}"
        for key in sorted({*now, *before})
        if now.get(key) != before.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    ]
    if differing:
        raise ValueError(
            f"these keys cannot change when a run is resumed: {'; '.join(differing[:5])}"
            f"{f' (and {len(differing) - 5} more)' if differing[5:] else ''}. Start a new run with "
            "another --out; --model.checkpoint makes it start from these weights"
        )


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(content, Mapping) and content and prefix != "published.numbers.":
        flat: dict[str, Any] = {}
        for key, value in content.items():
            flat |= _flat(value, f"{prefix}{key}.")
        return flat
    plain = list(content) if isinstance(content, tuple) else content
    return {prefix.rstrip("."): plain}
