from __future__ import annotations

import json
import pickle
import threading
import time

import pytest
from tiny_runner import unit

from autopeft.errors import AutopeftError
from autopeft.execute.board import Board
from autopeft.work import Outcome, WorkUnit


def done(trial: int) -> Outcome:
    return Outcome(trial, state="stopped")


def trials(text: str | None) -> list[int]:
    return [WorkUnit.from_dict(fields).trial for fields in json.loads(text or "[]")]


def test_units_are_handed_out_in_order_and_up_to_capacity() -> None:
    board = Board(capacity=2)
    for trial in range(3):
        board.submit(unit(trial))
    taken = [board.take(key) for key in "abc"]
    assert [trial for text in taken for trial in trials(text)] == [0, 1]
    board.finish("a", [done(0)])
    text = board.take("d")
    assert text is not None
    assert [WorkUnit.from_dict(fields) for fields in json.loads(text)] == [unit(2)]


def test_a_trial_comes_again_after_its_outcome() -> None:
    """With rungs a trial is several units, one after the other; a death counts for the unit that it befell."""
    board = Board(max_restarts=1)
    for key in "ab":
        board.submit(unit(0))
        assert trials(board.take(key)) == [0]
        board.lose(key, "killed")
        assert trials(board.take(f"{key}2")) == [0]
        board.finish(f"{key}2", [done(0)])
        assert board.collect(1) == [done(0)]
    board.finish("a2", [done(0)])  # late news of the first unit
    assert board.collect(0) == []


def test_units_that_go_together_are_handed_out_at_once() -> None:
    board = Board(capacity=2, together=3)
    for trial in range(2):
        board.submit(unit(trial))
    threading.Timer(0.1, board.submit, [unit(2)]).start()
    assert trials(board.take("a")) == [0, 1, 2]
    board.submit(unit(3))
    assert board.take("b") is None  # there may be more to come
    board.collect(0)
    assert trials(board.take("b")) == [3]  # the driver waits: there is no more
    board.finish("a", [done(trial) for trial in range(3)])
    assert board.collect(1) == [done(trial) for trial in range(3)]


def test_units_that_were_together_when_their_worker_died_are_handed_out_one_by_one() -> None:
    board = Board(max_restarts=0, together=3)
    for trial in range(3):
        board.submit(unit(trial))
    board.take("a")
    board.lose("a", "killed")
    assert trials(board.take("b")) == [0]
    board.lose("b", "killed")
    assert trials(board.take("c")) == [1]
    board.finish("c", [done(1)])
    assert trials(board.take("d")) == [2]
    board.finish("d", [done(2)])
    assert [(o.trial, o.state) for o in board.collect(1)] == [(0, "failed"), (1, "stopped"), (2, "stopped")]


def test_a_group_killed_for_want_of_memory_is_not_held_against_a_later_unit() -> None:
    kills = 0
    board = Board(max_restarts=0, together=2, count_kills=lambda: kills)
    for trial in range(2):
        board.submit(unit(trial))
    board.take("a")
    kills = 1
    board.lose("a", "")
    board.take("b")
    board.lose("b", "")  # of something else: no kill was counted since
    assert [(o.trial, o.state) for o in board.collect(1)] == [(0, "failed")]


def test_after_a_group_lost_its_worker_half_as_many_go_together() -> None:
    board = Board(together=5)
    for trial in range(20):
        board.submit(unit(trial))
    sizes = []
    for _ in range(2):
        sizes.append(len(trials(board.take("group"))))
        board.lose("group", "killed")
        for _ in range(sizes[-1]):
            assert len(trials(board.take("alone"))) == 1
            board.finish("alone", [])
    assert sizes == [5, 2]
    assert len(trials(board.take("group"))) == 1


def test_an_outcome_counts_once() -> None:
    board = Board(max_restarts=0)
    board.submit(unit(0))
    board.take("a")
    board.finish("a", [done(0)])
    board.finish("a", [done(0)])
    board.lose("a", "late news")
    assert board.collect(1) == [done(0)]
    assert board.collect(1) == []


def test_a_lost_unit_comes_first_again_and_then_fails() -> None:
    board = Board(max_restarts=1)
    board.submit(unit(0))
    board.submit(unit(1))
    for key in "ab":
        text = board.take(key)
        assert trials(text) == [0]
        board.lose(key, "it died in its creation task\nModuleNotFoundError: no module\n")
    (outcome,) = board.collect(1)
    assert (outcome.trial, outcome.state) == (0, "failed")
    assert outcome.reason == "worker died 2 times: ModuleNotFoundError: no module"


@pytest.mark.parametrize(
    ("text", "kernel"), [("1 worker(s) were killed due to the node running low on memory.", 0), ("", 1)]
)
def test_a_unit_whose_workers_are_killed_for_want_of_memory_is_infeasible(text: str, kernel: int) -> None:
    kills = 7  # of others, before
    board = Board(max_restarts=5, count_kills=lambda: kills)
    board.submit(unit(0))
    for key in "ab":  # tried once more only, whatever other deaths it may survive
        assert board.take(key) is not None
        kills += kernel
        board.lose(key, text)
    (outcome,) = board.collect(1)
    assert outcome.state == "infeasible"
    assert outcome.reason.startswith("out of memory: its worker died 2 times, killed for want of memory")
    assert outcome.exhausted_bytes > 0


def test_a_kill_for_want_of_memory_explains_one_death() -> None:
    kills = 0
    board = Board(capacity=2, max_restarts=0, count_kills=lambda: kills)
    for trial, key in enumerate("ab"):
        board.submit(unit(trial))
        board.take(key)
    kills = 1
    board.lose("a", "")
    board.lose("b", "")
    assert [o.state for o in board.collect(1)] == ["infeasible", "failed"]


def test_asking_waits_while_there_is_nothing_at_all() -> None:
    board = Board()
    threading.Timer(0.1, board.submit, [unit(0)]).start()
    assert board.take("a") is not None
    assert board.take("b") is None  # something is under way: no waiting


def test_close_wakes_whoever_asks() -> None:
    board = Board()
    threading.Timer(0.1, board.close).start()
    assert board.take("a") is None
    with pytest.raises(AutopeftError):
        board.submit(unit(0))


def test_an_end_gives_the_outcomes_that_are_there_and_then_raises() -> None:
    board = Board(capacity=2)
    for trial in range(2):
        board.submit(unit(trial))
        board.take(str(trial))
    board.finish("0", [done(0)])
    board.end("OSError: gone")
    assert board.collect(1) == [done(0)]
    with pytest.raises(AutopeftError, match=r"OSError: gone.*left without a worker: 1"):
        board.collect(1)


def test_silence_is_an_end() -> None:
    board = Board(silence_seconds=0.2)
    board.submit(unit(0))
    board.take("a")
    start = time.monotonic()
    with pytest.raises(AutopeftError, match="no sign of life"):
        board.collect(30)
    assert time.monotonic() - start < 5


def test_a_copy_is_empty() -> None:
    board = Board()
    board.submit(unit(0))
    assert pickle.loads(pickle.dumps(board)).collect(0) == []
