"""Where a study is kept: any database that SQLAlchemy knows, by default a SQLite file that outlives a kill."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.storages import RDBStorage
from optuna.storages._rdb.models import TrialParamModel
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from autopeft.errors import AutopeftError, DamagedRunError
from autopeft.problem import Problem


def sqlite_url(path: Path) -> str:
    """Give the storage URL of a SQLite file."""
    return f"sqlite:///{path.absolute()}"


def is_storage_url(text: object) -> bool:
    """Tell whether a text has the form of a database's URL; whether somebody answers there is another question."""
    try:
        return bool(make_url(str(text)).get_dialect())
    except (ArgumentError, ModuleNotFoundError):
        return False


@contextmanager
def faults_told(url: str) -> Iterator[None]:
    """Say of any fault of the storage which one it is, and what to do."""
    try:
        yield
    except AutopeftError:
        raise
    except Exception as error:
        raise DamagedRunError(
            f"study: cannot open {url}: {str(error).splitlines()[0]}. If it is the run's own study.db, delete it: "
            "resume rebuilds it from records.jsonl. If it is another storage, see that it runs and can be reached."
        ) from error


class _Connection(sqlite3.Connection):
    """Waits for the disk only now and then: what a loss of power takes from the study, the records give back."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA synchronous=NORMAL")


class _Storage(RDBStorage):
    """Writes the parameters of a new trial down as they are: with one space and one writer, Optuna need not look for
    the trial, and for the distribution that each had before, two queries a parameter."""

    def _set_trial_param_without_commit(
        self,
        session: Any,
        trial_id: int,
        param_name: str,
        param_value_internal: float,
        distribution: BaseDistribution,
        previous_distribution: BaseDistribution | None = None,
    ) -> None:
        said = distribution_to_json(distribution)
        row = TrialParamModel(
            trial_id=trial_id, param_name=param_name, param_value=param_value_internal, distribution_json=said
        )
        session.add(row)


def connect(url: str) -> RDBStorage:
    """Connect to a database, whose tables are made where it has none."""
    if url.startswith("sqlite:///"):
        _make_durable(Path(url.removeprefix("sqlite:///")))
    sqlite = {"connect_args": {"timeout": 60, "factory": _Connection}}
    return _Storage(url, engine_kwargs=sqlite if url.startswith("sqlite") else None)


def open_study(storage: RDBStorage, name: str, problem: Problem) -> optuna.Study:
    """Give the study of this name, a new one if there is none.

    Raises:
        DamagedRunError: If it has other objectives.
    """
    directions = [o.goal for o in problem.objectives]
    study = optuna.create_study(storage=storage, study_name=name, directions=directions, load_if_exists=True)
    if [d.name.lower() for d in study.directions] != directions:
        raise DamagedRunError(f"study: {name} holds {len(study.directions)} objectives, not these {len(directions)}")
    study.set_metric_names([o.name for o in problem.objectives])
    return study


def _make_durable(path: Path) -> None:
    """Switch the file to write-ahead logging: safe against a kill, and half the time of a commit."""
    try:
        with closing(sqlite3.connect(path, timeout=60)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.DatabaseError as error:
        raise DamagedRunError(
            f"study: {path.name} is damaged ({error}). Delete it: resume rebuilds it from records.jsonl."
        ) from error
