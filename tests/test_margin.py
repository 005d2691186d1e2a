from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from autopeft.candidates import Candidate, Cost
from autopeft.margin import MOST, safety_margin
from autopeft.records import TrialRecord
from autopeft.work import Measurement

LIMIT = 16 * 2**30


def record(predicted: int, *, measured: int = 0, exhausted: int = 0) -> TrialRecord:
    measurement = Measurement(1.0, memory_bytes=measured) if measured else None
    state = "complete" if measured else "infeasible"
    cost = Cost(1, memory_bytes=predicted)
    return TrialRecord(0, state, Candidate({}), 0, cost=cost, measurement=measurement, exhausted_bytes=exhausted)


def test_without_trials_a_prediction_is_taken_as_it_is():
    assert safety_margin([], limit_bytes=LIMIT) == 1.0
    assert safety_margin([record(0, measured=100), record(0, exhausted=100)], limit_bytes=LIMIT) == 1.0


def test_trials_that_needed_more_raise_it_and_those_that_needed_less_do_not_lower_it():
    assert safety_margin([record(100, measured=90)], limit_bytes=LIMIT) == 1.0
    assert safety_margin([record(100, measured=110), record(100, measured=104)], limit_bytes=LIMIT) == 1.1


@given(st.integers(LIMIT // 2 + 1, LIMIT))
def test_what_ran_out_of_memory_would_be_refused_the_next_time(predicted):
    margin = safety_margin([record(predicted, exhausted=1)], limit_bytes=LIMIT)
    assert predicted * margin > LIMIT
    assert (predicted - 2**20) * margin < LIMIT  # and little more than that


def test_memory_that_something_else_took_says_nothing_of_the_prediction():
    assert safety_margin([record(LIMIT // 4, exhausted=1)], limit_bytes=LIMIT) == 1.0


def test_a_peak_that_was_measured_counts_however_far_off_the_prediction_was():
    assert safety_margin([record(100, measured=int(100 * MOST) + 50)], limit_bytes=LIMIT) == MOST + 0.5


def test_it_is_the_same_from_records_that_were_stored():
    records = [record(LIMIT - 5, exhausted=3), record(100, measured=120)]
    stored = [TrialRecord.from_dict(r.to_dict()) for r in records]
    assert stored == records
    assert safety_margin(stored, limit_bytes=LIMIT) == safety_margin(records, limit_bytes=LIMIT) > 1.19
