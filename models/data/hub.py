"""What the library ``datasets`` reads for us: CSV, Parquet, JSON lines, image folders, saved folders and the hub.

The library is imported late, for it takes a second to load; it is kept silent, and what it writes goes to a folder that
the caller removes.
"""

from __future__ import annotations

import glob
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from PIL import Image

from monograph.errors import DataError
from monograph.models.bounded import check_json_file

# Types are inferred for each chunk: a whole number in the first chunk and a fraction in the second would not go together.
_ROWS_PER_CHUNK = 10_000_000
_BYTES_PER_CHUNK = 1 << 30
_ROWS_PER_SPOOLED_BATCH = 1000
# By pandas' own list the texts "None", "null" and "NA" would be read as missing.
_CSV: Mapping[str, Any] = {
    "keep_default_na": False,
    "na_values": ["", "nan", "NaN"],
    # Where rows have a field more than the header, pandas would take their first field for the row's name.
    "index_col": False,
    "chunksize": _ROWS_PER_CHUNK,
}
_JSON: Mapping[str, Any] = {"chunksize": _BYTES_PER_CHUNK}
_FORMATS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".csv": ("csv", _CSV),
    ".tsv": ("csv", {**_CSV, "sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", _JSON),
    ".json": ("json", _JSON),
}
_SPLIT_FOLDERS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation"}


def looks_like_file(data: str) -> bool:
    """Tell a path that does not exist from the id of a dataset on the hub, ``name`` or ``owner/name``."""
    if data.startswith("hf:"):
        return False
    path = Path(data)
    is_path = data.startswith(("/", "./", "../", "~")) or data.endswith("/") or data.count("/") > 1 or "\\" in data
    lies_in_a_folder = "/" in data and path.parent.is_dir()
    return is_path or lies_in_a_folder or re.fullmatch(r"\.[A-Za-z]\w*", path.suffix) is not None


def read_file(path: Path, split: str | None, scratch: Path) -> Any:
    """Read a CSV, TSV, Parquet or JSON lines file as a ``datasets.Dataset``.

    Raises:
        DataError: the file is empty, damaged, or of another format.
    """
    if path.suffix.lower() not in _FORMATS:
        raise DataError(f"{path}: unknown format {path.suffix!r}, expected .npz, {', '.join(_FORMATS)}, or a folder")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty, expected at least one row")
    builder, options = _FORMATS[path.suffix.lower()]
    if builder == "json":
        _check_json(path)
    with _library(str(path), f"cannot be read as {builder}") as datasets:
        files = {"train": glob.escape(str(path.resolve()))}
        if builder == "parquet":
            options = _parquet_options()
        loaded = datasets.load_dataset(builder, data_files=files, cache_dir=str(scratch), **options)
    return pick_split(loaded, split, str(path))


def _parquet_options() -> dict[str, Any]:
    """Read a thousand rows at a time; what Arrow buffers beforehand it would hold until the whole file is read."""
    from pyarrow.dataset import ParquetFragmentScanOptions

    return {"batch_size": 1000, "fragment_scan_options": ParquetFragmentScanOptions(pre_buffer=False)}


def is_saved_dataset(path: Path) -> bool:
    """Tell whether a folder was written by ``save_to_disk``."""
    return any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))


def read_saved(path: Path, split: str | None) -> Any:
    """Read a folder that ``save_to_disk`` wrote.

    Raises:
        DataError: the folder is damaged.
    """
    with _library(str(path), "is not a whole saved dataset") as datasets:
        loaded = datasets.load_from_disk(str(path))
    return pick_split(loaded, split, str(path))


def read_image_folder(path: Path, split: str | None, scratch: Path) -> Any:
    """Read a folder of pictures with one folder a class.

    The class folders may lie in folders named after splits, ``train`` and ``test`` for example.

    Raises:
        DataError: the folder holds no pictures, or pictures that lie at another depth.
    """
    extensions = Image.registered_extensions()
    if not any(file.suffix.lower() in extensions for file in path.rglob("*")):
        raise DataError(f"{path}: the folder holds neither pictures nor a saved dataset; expected one folder of pictures a class")
    for file in path.rglob("metadata.jsonl"):  # which the library reads too
        _check_json(file)
    roots = _split_roots(path)
    classes = {folder.name for root in roots.values() for folder in _subfolders(root)}
    files = {name: f"{glob.escape(str(root.resolve()))}/**" for name, root in roots.items()}
    with _library(str(path), "cannot be read as an image folder") as datasets:
        loaded = datasets.load_dataset("imagefolder", data_files=files, drop_labels=not classes, cache_dir=str(scratch))
    dataset = pick_split(loaded, split, str(path))
    if classes and "label" in dataset.features:
        _require_classes(set(dataset.features["label"].names), classes, path)
    return dataset


def read_hub(name: str, split: str | None, scratch: Path) -> Any:
    """Read a dataset on the hub, ``owner/name`` or ``owner/name:configuration``; its code is never run.

    Raises:
        DataError: the hub cannot be reached, or has no such dataset.
    """
    repository, _, configuration = name.partition(":")
    complaint = "no such file or folder here, and the hub gave no such dataset"
    with _library(name, complaint, "check the name and the network") as datasets:
        import huggingface_hub

        # Without a network load_dataset tries again for half a minute; this asks once.
        huggingface_hub.HfApi().dataset_info(repository, timeout=10)
        loaded = datasets.load_dataset(repository, configuration or None, cache_dir=str(scratch))
    return pick_split(loaded, split, name)


def spool(iterable: Any, origin: str, scratch: Path) -> Any:
    """Write a ``datasets.IterableDataset`` to disk as it comes, a thousand rows in memory at a time: it has a length then.

    Raises:
        DataError: it cannot be read, or gives no rows.
    """
    path = scratch / "spooled.arrow"
    with _library(origin, "cannot be read as an iterable dataset") as datasets:
        from datasets.arrow_writer import ArrowWriter

        with ArrowWriter(path=str(path), features=iterable.features, writer_batch_size=_ROWS_PER_SPOOLED_BATCH) as writer:
            rows = iter(iterable)
            first = next(rows)  # what has none ends here, and is told as other empty data is
            for row in chain((first,), rows):
                writer.write(iterable.features.encode_example(row) if iterable.features else row)
            writer.finalize()
        return datasets.Dataset.from_file(str(path))


def pick_split(loaded: Any, split: str | None, origin: str) -> Any:
    """Return one ``Dataset`` of a ``Dataset`` or ``DatasetDict``.

    Raises:
        DataError: there are several splits and none is named, or none of that name.
    """
    splits = loaded if isinstance(loaded, dict) else {str(loaded.split or "train"): loaded}
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None:
        raise DataError(f"{origin}: has the splits {', '.join(splits)}: choose one with --split")
    if split not in splits:
        raise DataError(f"{origin}: has no split {split!r}; it has {', '.join(splits)}")
    return splits[split]


def _subfolders(path: Path) -> list[Path]:
    # The library skips hidden folders and those that Python makes.
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith((".", "__")))


def _split_roots(path: Path) -> dict[str, Path]:
    """Return the folders that hold class folders, by split."""
    folders = _subfolders(path)
    # A class may be called "train": then its folder holds pictures, and no folders.
    if folders and all(folder.name in _SPLIT_FOLDERS and _subfolders(folder) for folder in folders):
        return {folder.name: folder for folder in folders}
    return {"train": path}


def _require_classes(found: set[str], expected: set[str], path: Path) -> None:
    if expected - found:
        empty = ", ".join(sorted(expected - found)[:5])
        raise DataError(f"{path}: no pictures lie directly in class folder {empty}: fill it, or take it away")
    if found - expected:
        outside = ", ".join(sorted(found - expected)[:5])
        raise DataError(f"{path}: pictures lie in {outside}, which is no class folder: expected one folder of pictures a class")


def _check_json(path: Path) -> None:
    """Refuse JSON so deep that the parser, which is written in C++, would end the process."""
    try:
        check_json_file(path, largest_bytes=None)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as json ({error}): check the file") from error


@contextmanager
def _library(origin: str, complaint: str, remedy: str = "check the file") -> Iterator[Any]:
    """Lend the module ``datasets``, silenced; what it raises becomes a DataError of one line."""
    import datasets

    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    had_progress_bars = not datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # The CSV reader leaves its file to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            # Pandas cuts rows that are longer than the header, and only warns.
            warnings.filterwarnings("error", message="Length of header or names")
            try:
                yield datasets
            except Exception as error:
                raise _data_error(error, origin, complaint, remedy) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if had_progress_bars:
            datasets.enable_progress_bars()


def _data_error(error: Exception, origin: str, complaint: str, remedy: str) -> DataError:
    root: BaseException = error
    # The frames hold files open; their variables go, the lines of the traceback stay.
    traceback.clear_frames(root.__traceback__)
    while root.__cause__ is not None:
        root = root.__cause__
        traceback.clear_frames(root.__traceback__)
    if "corresponds to no data" in str(error) or isinstance(root, StopIteration):
        return DataError(f"{origin}: no rows, expected at least one")
    reason = " ".join(str(root).split())[:300] or type(root).__name__
    return DataError(f"{origin}: {complaint} ({reason}): {remedy}")
