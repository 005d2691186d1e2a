"""What the tests of the faces share: small models with a tokenizer, small data, the command line, and one run."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fruits import SMALL, Ended, fruit_rows, write_jsonl, write_tokenizer

import autopeft as ap
from autopeft.trial.model import ModelSource


def _with_tokenizer(source: ModelSource, folder: Path) -> Path:
    shutil.copytree(source.path, folder, dirs_exist_ok=True)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread for a training here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("autopeft.workers.os.sched_getaffinity", lambda _: {0})
        yield


@pytest.fixture(scope="session")
def bert_folder(source_of: Callable[[str, str], ModelSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with its tokenizer."""
    return _with_tokenizer(source_of("bert", "text-classification"), tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama_folder(source_of: Callable[[str, str], ModelSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with its tokenizer."""
    return _with_tokenizer(source_of("llama", "causal-lm"), tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def t5_folder(source_of: Callable[[str, str], ModelSource], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small T5 with its tokenizer."""
    return _with_tokenizer(source_of("t5", "seq2seq-lm"), tmp_path_factory.mktemp("t5"))


@pytest.fixture(scope="session")
def fruits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts with labels."""
    return write_jsonl(fruit_rows(60), tmp_path_factory.mktemp("data") / "fruits.jsonl")


@pytest.fixture(scope="session")
def small(bert_folder: Path, fruits: Path) -> dict[str, Any]:
    """The fields of a small search."""
    return {**SMALL, "model": str(bert_folder), "data": str(fruits)}


@pytest.fixture(scope="session")
def done(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> ap.Result:
    """A finished run, not to be changed; `a_run` gives a copy."""
    return ap.search(**small, out=str(tmp_path_factory.mktemp("runs") / "done"))


@pytest.fixture
def group_sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Train together whatever may be, as if it always paid; gives the sizes of the groups, as they are formed."""
    sizes: list[int] = []

    def choose_size(bare: object, trainees: list[object], *_: object, **__: object) -> tuple[int, dict[int, float]]:
        sizes.append(len(trainees))
        return len(trainees), {len(trainees): 2.0}

    monkeypatch.setattr("autopeft.trial.together.groups.choose_size", choose_size)
    monkeypatch.setattr("autopeft.trial.together.groups.is_stacked", lambda plan: False)
    return sizes


@pytest.fixture
def a_run(done: ap.Result, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(done.path, tmp_path / "run"))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Ended]]:
    """Run the command line's own entry point in this process."""
    from autopeft.cli import main

    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["autopeft", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    yield run
    signal.signal(signal.SIGTERM, before)
