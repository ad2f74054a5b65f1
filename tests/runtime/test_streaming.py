"""Rows read while they are run: the same outputs, in their order, in memory that does not grow; what goes wrong is told."""

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from monograph.errors import DataError, SourceError
from monograph.models.data.rows import Rows
from monograph.models.data.stream import open_stream
from monograph.models.onnx_file import read_onnx
from monograph.runtime.job import Job, run_in_process
from monograph.runtime.measure import Contender, Settings, measure, onnx_contender
from monograph.runtime.streaming import chunk_rows
from monograph.runtime.targets import find_target

CPU = find_target("cpu")
Classifier = Callable[..., Path]
Make = Callable[[Path], Contender]


def parquet(path: Path, row_count: int, width: int = 4, block: int = 10_000) -> Path:
    """Write x [n x width], y [n] that is right for about half, and a column of cities; a block of rows at a time."""
    rng, writer = np.random.default_rng(0), None
    for start in range(0, row_count, block):
        n = min(block, row_count - start)
        x = rng.standard_normal((n, width), dtype=np.float32)
        table = pa.table(
            {
                "x": pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), width),
                "y": pa.array(np.arange(start, start + n) % 3),
                "city": pa.array(np.where(np.arange(n) % 4 == 0, "Aarhus", "Bergen")),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()
    return path


def run_streamed(contender: Contender, data: Path, settings: Settings):
    with open_stream(str(data), contender.contract) as stream:
        return run_in_process(Job(contender, stream.read(0, 4), settings, stream))


@pytest.mark.parametrize("batch", ["batch", "7"])
@pytest.mark.parametrize("n", [1, 31, 9_001])
def test_streamed_outputs_are_those_of_all_rows(
    classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray, tmp_path: Path, batch: str, n: int
):
    made = contender(classifier(batch=batch))
    data = parquet(tmp_path / "rows.parquet", n)
    x = np.array(pq.read_table(data)["x"].to_pylist(), np.float32)
    outputs = run_streamed(made, data, quick).outputs
    assert isinstance(outputs, np.memmap)
    np.testing.assert_allclose(outputs, x @ weights, rtol=1e-5, atol=1e-6)


def test_a_streamed_measurement_scores_all_rows_and_slices(
    classifier: Classifier, contender: Make, quick: Settings, weights: np.ndarray, tmp_path: Path
):
    made, data = contender(classifier()), parquet(tmp_path / "rows.parquet", 9_001)
    with open_stream(str(data), made.contract, slices=("city", "class")) as stream:
        result = measure(made, CPU, stream, quick)
    table = pq.read_table(data)
    right = (np.array(table["x"].to_pylist(), np.float32) @ weights).argmax(1) == table["y"].to_numpy()
    assert result.accuracy.top1.estimate == right.mean()
    by_slice = {(one.column, one.value): one for one in result.scorecard.slices}
    assert set(by_slice) == {("city", "Aarhus"), ("city", "Bergen"), ("class", "0"), ("class", "1"), ("class", "2")}
    aarhus = np.array(table["city"].to_pylist()) == "Aarhus"
    assert by_slice["city", "Aarhus"].scores["top1"].estimate == right[aarhus].mean()
    assert by_slice["city", "Aarhus"].row_count == aarhus.sum()


def test_a_row_that_cannot_be_read_late_in_the_data_is_named(
    classifier: Classifier, contender: Make, quick: Settings, tmp_path: Path
):
    x = [[1.0] * 4] * 9000
    x[8500] = [1.0, None, 1.0, 1.0]
    pq.write_table(pa.table({"x": pa.array(x, pa.list_(pa.float32())), "y": pa.array([0] * 9000)}), tmp_path / "holes.parquet")
    made = contender(classifier())
    with pytest.raises(DataError, match=r"column 'x': row 8500 has no value.*\(in the part that starts with row 8192\)"):
        run_streamed(made, tmp_path / "holes.parquet", quick)
    assert not any(thread.name == "monograph-feeder" for thread in threading.enumerate())


def test_a_late_label_out_of_range_shows_before_anything_runs(classifier: Classifier, contender: Make, tmp_path: Path):
    labels = np.zeros(40_000, np.int64)
    labels[39_000] = 5
    np.savez(tmp_path / "rows.npz", x=np.ones((40_000, 4), np.float32), y=labels)
    with (
        pytest.raises(DataError, match=r"label 5, expected 0 to 2.*\(in the part that starts with row 32768\)"),
        open_stream(str(tmp_path / "rows.npz"), contender(classifier()).contract),
    ):
        pass


def test_a_child_that_fails_ends_the_feeder(classifier: Classifier, contender: Make, quick: Settings, tmp_path: Path):
    made, data = contender(classifier()), parquet(tmp_path / "rows.parquet", 100)
    Path(made.loader_arguments["path"]).unlink()
    with pytest.raises(SourceError, match="cannot load"):
        run_streamed(made, data, quick)
    assert not any(thread.name == "monograph-feeder" for thread in threading.enumerate())


def test_a_target_that_runs_models_its_own_way_is_given_all_rows(
    classifier: Classifier, contender: Make, quick: Settings, tmp_path: Path
):
    seen = []

    def run(job: Job):
        seen.append((len(job.rows), job.stream))
        return run_in_process(job)

    made, data = contender(classifier()), parquet(tmp_path / "rows.parquet", 500)
    with open_stream(str(data), made.contract) as stream:
        assert measure(made, replace(CPU, run=run, streams_rows=False), stream, quick).accuracy.row_count == 500
    assert seen == [(500, None)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arm64", "webgpu", pytest.param("web-wasm", marks=pytest.mark.browser)])
def test_rows_are_streamed_to_browsers_and_emulators_too(
    classifier: Classifier, quick: Settings, weights: np.ndarray, tmp_path: Path, name: str
):
    target = find_target(name)
    if not target.is_available():
        pytest.skip(target.describe())
    path, data, kept = classifier(), parquet(tmp_path / "rows.parquet", 4_500), []
    file = read_onnx(path)
    made = onnx_contender(path.stem, path, file.contract, file.sha256, file.size_bytes, target)
    with open_stream(str(data), made.contract) as stream:
        accuracy = measure(made, target, stream, quick, lambda run: kept.append(np.array(run.outputs))).accuracy
    assert accuracy.row_count == 4_500
    x = np.array(pq.read_table(data)["x"].to_pylist(), np.float32)
    np.testing.assert_allclose(kept[0], x @ weights, rtol=1e-4, atol=1e-4)


def test_an_iterable_dataset_is_streamed(
    classifier: Classifier, contender: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "endless_rows.py").write_text(
        "import datasets\n"
        "def rows():\n    for i in range(2500): yield {'x': [float(i), 1.0, 2.0, 3.0], 'y': i % 3}\n"
        "def build(): return datasets.IterableDataset.from_generator(rows)\n"
        "def none(): return datasets.IterableDataset.from_generator(lambda: iter(()))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    contract = contender(classifier()).contract
    with open_stream("py:endless_rows:build", contract) as stream:
        assert stream.row_count == 2500
        assert stream.read(2498, 2600).inputs["x"][:, 0].tolist() == [2498, 2499]
        assert stream.labels[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match="no rows"), open_stream("py:endless_rows:none", contract):
        pass


@pytest.mark.parametrize("column", ["town", "x2"])
def test_a_column_that_makes_no_slices_is_refused(classifier: Classifier, contender: Make, tmp_path: Path, column: str):
    np.savez(tmp_path / "rows.npz", x=np.ones((40, 4), np.float32), y=np.zeros(40, int), x2=np.ones((40, 2)))
    data, contract = tmp_path / "rows.npz", contender(classifier()).contract
    with pytest.raises(DataError, match=f"column '{column}' for --slice"):
        open_stream(str(data), contract, slices=(column,)).__enter__()


def test_chunks_are_whole_batches():
    def rows(width: int) -> Rows:
        return Rows({"x": np.broadcast_to(np.float32(1), (2, width))})

    assert [chunk_rows(rows(width), 32) for width in (1, 1 << 14, 1 << 30)] == [4096, 128, 32]
    assert chunk_rows(rows(1), 7) % 7 == 0


@contextmanager
def watched_anonymous_memory() -> Iterator[list[int]]:
    """Collect the bytes of memory that no file backs, of this process and of those that it started, together."""
    samples, stop, here = [], threading.Event(), psutil.Process()
    own_command = command_of(here.pid)

    def watch() -> None:
        while not stop.wait(0.01):
            # Until a new process runs its own program it shows the memory of the one that starts it, as if held twice.
            started = [child.pid for child in here.children() if command_of(child.pid) != own_command]
            samples.append(sum(map(anonymous_bytes, [here.pid, *started])))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(contender: Make, quick: Settings, tmp_path: Path, classifier: Classifier):
    """Four times the rows, 123 MB more of inputs: less than half of that more is held while they are run and scored."""
    made, peaks = contender(classifier(width=512)), []
    for n in (20_000, 80_000):
        data = parquet(tmp_path / f"{n}.parquet", n, width=512)
        with open_stream(str(data), made.contract, slices=("city",)) as stream, watched_anonymous_memory() as samples:
            gc.collect()
            pa.default_memory_pool().release_unused()
            samples.clear()
            assert measure(made, CPU, stream, quick).accuracy.row_count == n
        peaks.append(max(samples) - min(samples))
    assert peaks[1] - peaks[0] < 60_000_000, peaks
