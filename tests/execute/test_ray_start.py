"""Ray as the executor starts, joins and leaves it: nothing here may be connected before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import tiny_runner
from tiny_runner import drain, unit

from autopeft.errors import AutopeftError, RequestError
from autopeft.execute.ray_tune import RayTuneExecutor

SCRIPT = """
    import sys, time
    from autopeft.candidates import Candidate
    from autopeft.execute.function import entry_of
    from autopeft.execute.ray_tune import RayTuneExecutor
    from autopeft.work import Measurement, WorkerSpec, WorkUnit
    import beside

    def train(candidate, steps):
        print("a worker prints")
        time.sleep(candidate["sleep"])
        return Measurement(quality=beside.QUALITY)

    if __name__ == "__main__":
        spec = WorkerSpec("autopeft.execute.function:FunctionRunner", {"function": entry_of(train)})
        executor = RayTuneExecutor(spec=spec, workers=1)
        try:
            executor.submit(WorkUnit(trial=0, candidate=Candidate({"sleep": float(sys.argv[1])}), steps=1, seed=0))
            if sys.argv[1] == "100":
                print("waiting", flush=True)
            while not (outcomes := executor.wait(60)):
                pass
            print(outcomes[0].reason or outcomes[0].measurement.quality)
        except KeyboardInterrupt:
            print("interrupted")
        finally:
            executor.close()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "beside.py").write_text("QUALITY = 0.75\n")
    path = tmp_path / "my_script.py"
    path.write_text(textwrap.dedent(SCRIPT))
    return path


@pytest.fixture(autouse=True)
def _unconnected() -> Iterator[None]:
    ray.shutdown()
    yield
    ray.shutdown()


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files that nobody else writes to."""
    (folder := tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_own_ray_comes_and_goes_and_comes_again(temp: Path, capfd: pytest.CaptureFixture[str]) -> None:
    executor = RayTuneExecutor(spec=tiny_runner.SPEC, workers=2, max_restarts=0)
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    executor.submit(unit(0, do="die"))
    executor.submit(unit(1))
    assert [o.state for o in drain(executor, 2)] == ["failed", "complete"]
    executor.submit(unit(2, sleep=100.0))
    start = time.monotonic()
    executor.close()
    assert time.monotonic() - start < 50  # half of what the unit takes
    assert not session.exists()

    with pytest.raises(RequestError, match="gpus_per_worker: 64, which no machine has"):
        RayTuneExecutor(spec=tiny_runner.SPEC, workers=2, gpus_per_worker=64)  # starts Ray to see what there is
    assert not ray.is_initialized()
    assert list(temp.iterdir()) == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nonsense"])
def test_an_address_where_nobody_answers_is_refused(address: str) -> None:
    start = time.monotonic()
    with pytest.raises(RequestError, match="ray_address: .*" + address):
        RayTuneExecutor(spec=tiny_runner.SPEC, workers=1, address=address)
    assert time.monotonic() - start < 15


def test_a_running_cluster_is_joined_and_left_running(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        for round_ in range(2):
            (folder := tmp_path / str(round_)).mkdir()
            executor = RayTuneExecutor(spec=tiny_runner.SPEC, workers=2, address=cluster.address)
            for trial in range(2):
                executor.submit(unit(trial, do="meet", folder=str(folder)))
            outcomes = drain(executor, 2)
            executor.close()
            nodes = {o.measurement.metrics["parent"] for o in outcomes if o.measurement}
            assert len(nodes) == 2, outcomes  # a worker's parent is its node's own process
            assert not ray.is_initialized()
    finally:
        cluster.shutdown()


def test_a_script_elsewhere_runs_its_own_function_and_keeps_stdout_clean(script: Path) -> None:
    ran = subprocess.run(
        [sys.executable, str(script), "0"], capture_output=True, text=True, timeout=60, cwd=script.parent.parent
    )
    assert (ran.stdout, ran.stderr) == ("0.75\n", "")


def test_ctrl_c_reaches_the_caller_and_leaves_nothing_behind(script: Path, temp: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(script), "100"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    time.sleep(2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to Ray's processes as well
    out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("interrupted\n", 0)
    assert list(temp.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["raylet", "gcs_server"])
def test_the_death_of_ray_is_an_error_and_no_endless_wait(killed: str) -> None:
    import psutil

    executor = RayTuneExecutor(spec=tiny_runner.SPEC, workers=1)
    try:
        executor.submit(unit(0))
        drain(executor, 1)
        executor.submit(unit(1, sleep=200.0))
        time.sleep(1)
        (process,) = [p for p in psutil.Process().children(recursive=True) if p.name() == killed]
        process.kill()
        with pytest.raises(AutopeftError, match="Ray has stopped"):
            drain(executor, 1, seconds=100)
    finally:
        executor.close()
