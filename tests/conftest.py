"""What all tests share: one thread, no network, and small models that are written once."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from functools import cache

# Before torch, transformers and datasets are imported: they read these once.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
_CACHE = tempfile.mkdtemp(prefix="autopeft-tests-")
os.environ |= {"HF_DATASETS_CACHE": _CACHE, "XDG_CACHE_HOME": _CACHE}

import pytest  # noqa: E402
from families import LABELS, TOKENS, make_model  # noqa: E402

from autopeft.anatomy import Anatomy  # noqa: E402
from autopeft.trial.model import ModelSource  # noqa: E402
from autopeft.trial.reading import read_anatomy  # noqa: E402


def pytest_unconfigure() -> None:
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process begin with some of the files that start programs and Ray: of long tests at the end, or all with
    one process, which begins at its share of the list, the others would wait for the last."""
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.path.parent.name in ("faces", "execute")]
    others = [item for item in items if item.path.parent.name not in ("faces", "execute")]
    files = list(dict.fromkeys(item.path for item in long))
    ordered: list[pytest.Item] = []
    for process in range(count):
        ordered += [item for item in long if files.index(item.path) % count == process]
        room = max(0, len(items) * (process + 1) // count - len(ordered))
        ordered, others = ordered + others[:room], others[room:]
    items[:] = ordered + others


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored, and they pass that on; here it is sent, and must arrive.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def _no_long_walks() -> Iterator[None]:
    """Spare the garbage collector, which a worker calls after every unit, what pytest and earlier modules have left."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], ModelSource]:
    """Give a small model on disk: (family, task) -> where it is and what it is for."""

    @cache
    def source(family: str, task: str) -> ModelSource:
        folder = make_model(family, task, tmp_path_factory.mktemp(f"{family}-{task}"))
        return ModelSource(str(folder), task, LABELS if task == "text-classification" else ())  # type: ignore[arg-type]

    return source


@pytest.fixture(scope="session")
def anatomy_of(source_of: Callable[[str, str], ModelSource]) -> Callable[[str, str], Anatomy]:
    """Give the anatomy of a small model, with the tokens of its batches: (family, task) -> anatomy."""
    return cache(lambda family, task: read_anatomy(source_of(family, task)).on_data(TOKENS))


@pytest.fixture(scope="session")
def bert(anatomy_of: Callable[[str, str], Anatomy]) -> Anatomy:
    return anatomy_of("bert", "text-classification")


@pytest.fixture(scope="session")
def llama(anatomy_of: Callable[[str, str], Anatomy]) -> Anatomy:
    return anatomy_of("llama", "causal-lm")
