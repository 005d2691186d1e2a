"""The user's data as rows: a file, a folder of splits, or a data set of the hub, read by the `datasets` library."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
from datasets.exceptions import DatasetsError
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # whichever HTTP client the hub uses

from autopeft.errors import SourceError

ACCEPTED = (
    "a .csv, .tsv, .jsonl, .json or .parquet file (text also as .gz), a folder with such files named train, "
    "validation and test, or a data set of the hub such as glue:sst2"
)
"""What `read_source` reads, in words."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}
"""The names under which a split is looked for, best first."""

_BUILDERS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?")
datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it logs a traceback before it raises; ours says it all

_SHARD = re.compile(r"-\d+-of-\d+$")
_FAULTS = (DatasetsError, OSError, ValueError, RuntimeError, ImportError, httpx.HTTPError)


@dataclass(frozen=True, slots=True)
class Source:
    """The data as found: "train" always, "validation" and "test" where there are such.

    Attributes:
        name: What the user called it.
        splits: Split -> `datasets.Dataset`.
    """

    name: str
    splits: Mapping[str, Any]


def read_source(data: str) -> Source:
    """Read what `SearchRequest.data` names; a path that exists comes before a data set of the hub.

    Raises:
        SourceError: If there is no such thing, it cannot be read, or it has no train split.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        found = {name: _read_files(files) for name, files in _split_files(path).items()}
    elif path.exists():
        if _builder(path) is None:
            raise SourceError(f"data: {data} is of no known format; give {ACCEPTED}")
        found = {"train": _read_files([path])}
    else:
        hub_id = _HUB_ID.fullmatch(data)
        beside = "/" in data and path.parent.is_dir()  # a slip in the name of something here, not an owner at the hub
        if hub_id is None or beside or _builder(path) is not None:
            raise SourceError(f"data: {data} does not exist; give {ACCEPTED}")
        found = _read_hub(data, hub_id["id"], hub_id["config"])
    return Source(name=data, splits=found)


def _builder(path: Path) -> str | None:
    return _BUILDERS.get(_stem_and_suffix(path)[1])


def _stem_and_suffix(path: Path) -> tuple[str, str]:
    """Give the name without its suffixes and the suffix that tells the format, in lower case."""
    plain = path.with_suffix("") if path.suffix.lower() in _COMPRESSED else path
    return plain.stem, plain.suffix.lower()


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Find the files of each split; the shards `train-00000-of-00002` belong together."""
    by_stem: dict[str, list[Path]] = {}
    files = sorted(file for file in folder.iterdir() if file.is_file() and _builder(file) is not None)
    for file in files:
        by_stem.setdefault(_SHARD.sub("", _stem_and_suffix(file)[0].lower()), []).append(file)
    found: dict[str, list[Path]] = {}
    for split, names in SPLIT_NAMES.items():
        present = [by_stem[name] for name in names if name in by_stem]
        candidates = [file for group in present for file in group]
        if len(present) > 1 or (
            len(candidates) > 1 and not all(_SHARD.search(_stem_and_suffix(f)[0]) for f in candidates)
        ):
            listed = ", ".join(file.name for file in candidates)
            raise SourceError(f"data: {folder} has several files for the {split} split: {listed}; keep one")
        if candidates:
            found[split] = candidates
    if "train" not in found:
        listed = ", ".join(file.name for file in files[:8]) or "no data files"
        raise SourceError(f"data: {folder} has no train file, it has {listed}; give {ACCEPTED}")
    return found


def _read_files(files: list[Path]) -> Any:
    """Read the files of one split, all of one format."""
    options: dict[str, Any] = {}
    builder = _builder(files[0])
    with _reading(", ".join(str(file) for file in files)):
        if builder == "csv":
            separator = "\t" if _stem_and_suffix(files[0])[1] == ".tsv" else ","
            header = pd.read_csv(files[0], sep=separator, nrows=0).columns
            # Every cell stays the text that it is: "NA" or "null" is a word, and 007 keeps its zeros.
            options = {
                "sep": separator,
                "features": datasets.Features({str(column): datasets.Value("string") for column in header}),
                "keep_default_na": False,
            }
        # A path is no pattern, whatever signs are in it.
        names = [glob.escape(str(file.resolve())) for file in files]
        loading = datasets.load_dataset_builder(builder, data_files=names, **options)
        loading.download_and_prepare()
        if not loading.info.splits["train"].num_examples:  # as_dataset would say that train does not exist
            raise SourceError(f"data: {', '.join(str(file) for file in files)} has no rows; give {ACCEPTED}")
        return loading.as_dataset(split="train")


def _read_hub(data: str, hub_id: str, config: str | None) -> dict[str, Any]:
    fault = "is no file or folder here, and the hub gave no data set of that name"
    with _reading(data, fault, remedy=f"; give {ACCEPTED}"):
        loaded = datasets.load_dataset(hub_id, config)
    found = {}
    for split, names in SPLIT_NAMES.items():
        present = [name for name in names if name in loaded]
        if present:
            found[split] = loaded[present[0]]
    if "train" not in found:
        raise SourceError(f"data: {data} has no train split, it has {', '.join(loaded)}; choose another data set")
    return found


@contextmanager
def _reading(what: str, fault: str = "cannot be read", remedy: str = "") -> Iterator[None]:
    """Turn the library's errors into ours, in one line with the innermost cause, and keep its progress bars away."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    except _FAULTS as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [""])[0]
        raise SourceError(f"data: {what} {fault} ({type(cause).__name__}: {reason}){remedy}") from error
    finally:
        if shown:
            datasets.enable_progress_bars()
