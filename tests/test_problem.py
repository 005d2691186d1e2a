from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from families import PAIRS

from autopeft.binding import bind_space
from autopeft.candidates import Candidate
from autopeft.errors import InfeasibleError, RequestError
from autopeft.methods import METHODS
from autopeft.objectives import DEFAULT_METRIC, METRICS, OBJECTIVES, objective, quality_of
from autopeft.plans import plan_of
from autopeft.problem import Problem
from autopeft.search.pool import Pool
from autopeft.space_file import load_space, parse_space
from autopeft.work import Measurement

THREE = tuple(OBJECTIVES[name] for name in ("quality", "params", "memory"))


@pytest.fixture
def problem_on(anatomy_of):
    def problem(family="bert", task="text-classification", *, space="default", limit=None, cuda=True):
        anatomy = anatomy_of(family, task)
        return Problem(bind_space(load_space(space), anatomy, cuda=cuda), THREE, anatomy, parameter_limit=limit)

    return problem


def test_the_head_counts_towards_the_budget(problem_on, bert):
    problem = problem_on(limit=bert.head_params + 500)
    assert bert.head_params == 325
    fitted = problem.fit(problem.space.complete({}))
    assert fitted is not None
    cost = problem.cost(fitted)
    assert cost is not None
    assert (cost.head_params, cost.trainable_params) == (325, cost.adapter_params + 325)
    assert cost.trainable_params <= problem.parameter_limit


def test_a_budget_below_the_head_leaves_nothing(problem_on):
    problem = problem_on(limit=200)
    assert problem.fit(problem.space.complete({})) is None
    with pytest.raises(InfeasibleError, match="325 of them in the new task head"):
        problem.check_feasible()


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_the_smallest_size_named_is_a_budget_that_works(family, task, problem_on):
    problem = problem_on(family, task, limit=0)
    with pytest.raises(InfeasibleError) as error:
        problem.check_feasible()
    needed = int(str(error.value).partition("at least ")[2].partition(",")[0])
    candidate, params = problem.smallest()
    assert params + problem.anatomy.head_params == needed
    assert replace(problem, parameter_limit=needed).refusal(candidate) == ""
    assert "more than" in replace(problem, parameter_limit=needed - 1).refusal(candidate)


def test_no_limit_is_always_feasible(problem_on):
    problem_on(limit=None).check_feasible()


@pytest.mark.parametrize(
    ("values", "limit", "reason"),
    [
        ({"method": "lora", "bits": 8, "lora.dora": True}, None, "DoRA does not train on an 8-bit base"),
        ({"method": "lora", "lora.rank": 0}, None, "it trains nothing"),
        ({"method": "lora", "lora.rank": 64}, 2000, "adapter parameters are more than the 1,675 left"),
        ({"method": "lora"}, None, ""),
    ],
)
def test_what_cannot_be_trained_is_refused_with_a_reason(values, limit, reason, problem_on):
    problem = problem_on(limit=limit)
    refusal = problem.refusal(problem.space.complete(values))
    assert refusal if reason else not refusal
    assert reason in refusal


def test_plans_that_mean_the_same_training_have_one_identity(problem_on):
    problem = problem_on()
    one = {"lora.rank": 8, "lora.share": 1}
    same = {"lora.rank": 16, "lora.share": 0.5}
    assert problem.identity(problem.space.complete(one)) == problem.identity(problem.space.complete(same))
    different = [
        {"lora.alpha": "32", **one},
        {"lora.alpha": "r", **one},
        {"lr_multiple": 2, **one},
        {"bits": 4, **one},
    ]
    assert len({problem.identity(problem.space.complete(v)) for v in (one, *different)}) == 5


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_count_is_that_of_the_adapter_which_is_built(family, problem_on):
    problem = problem_on(family)
    for candidate in Pool(problem).fresh(400, Random(0)):
        built = plan_of(candidate, problem.anatomy).adapter_params
        assert problem.adapter_params(candidate) == built, candidate.written_out
        other = Candidate({**candidate.values, "bits": 16, "lr_multiple": 0.123})
        assert problem.counted_by(other) == problem.counted_by(candidate)
        assert plan_of(other, problem.anatomy).adapter_params == built
        for name in candidate.values.keys() - {"bits", "lr_multiple"}:
            assert name in dict(problem.counted_by(candidate))


def test_alpha_written_as_a_rule_or_a_number_is_the_same_training(problem_on):
    problem = problem_on()
    rule, number = ({"lora.rank": 8, "lora.alpha": alpha} for alpha in ("2r", "16"))
    assert problem.identity(problem.space.complete(rule)) == problem.identity(problem.space.complete(number))


def test_learning_rate_is_a_multiple_of_the_customary_one(bert):
    for name, method in METHODS.items():
        plan = plan_of(Candidate({"method": name, "lr_multiple": 3.0}), bert)
        assert plan.learning_rate == pytest.approx(3 * method.learning_rate)


def test_without_bits_in_the_space_the_base_is_as_its_checkpoint(bert):
    assert plan_of(Candidate({"method": "lora"}), bert).bits == bert.dtype_bits == 32


def test_bits_above_the_checkpoint_are_left_out(problem_on, bert):
    from dataclasses import replace

    half = replace(bert, dtype_bits=16)
    bound = bind_space(load_space("default"), half, cuda=True)
    assert bound.parameter("bits").domain.values == (16, 8, 4)
    assert all(start.get("bits", 16) <= 16 for start in bound.start)


def test_with_a_custom_runner_the_callers_cost_counts():
    space = parse_space({"parameters": {"n": {"ordinal": [1, 2, 4, 8], "size": True}}})
    problem = Problem(space, THREE, own_cost=lambda c: 100 * int(c["n"]), parameter_limit=450)
    fitted = problem.fit(space.complete({"n": 8}))
    assert fitted == Candidate({"n": 4})
    assert problem.plan(fitted) is None
    assert problem.cost(fitted).trainable_params == 400
    assert "800 adapter parameters are more" in problem.refusal(Candidate({"n": 8}))


def test_with_a_custom_runner_that_says_no_cost_everything_fits():
    space = parse_space({"parameters": {"n": {"ordinal": [1, 2], "size": True}}})
    problem = Problem(space, THREE)
    assert problem.cost(Candidate({"n": 2})) is None
    assert problem.refusal(Candidate({"n": 2})) == ""
    assert problem.fit(Candidate({"n": 2})) == Candidate({"n": 2})


def test_a_task_that_a_method_is_not_for_is_refused(problem_on, monkeypatch):
    from dataclasses import replace

    problem = problem_on()
    monkeypatch.setitem(METHODS.data, "ia3", replace(METHODS["ia3"], tasks=("causal-lm",), bits=(16,)))
    assert (
        problem.refusal(problem.space.complete({"method": "ia3", "bits": 16})) == "ia3 is not for text-classification"
    )
    assert "does not train on a base of 4 bits" in problem.refusal(problem.space.complete({"method": "ia3", "bits": 4}))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_finite_number_of_a_measurement(name):
    measurement = Measurement(0.5, trainable_params=7, memory_bytes=9, adapter_bytes=11, train_seconds=1.5)
    value = OBJECTIVES[name].measure(measurement)
    assert value == {"quality": 0.5, "params": 7, "memory": 9, "adapter_bytes": 11, "train_seconds": 1.5}[name]
    assert isinstance(value, float)
    assert math.isfinite(value)
    assert OBJECTIVES[name].loss(value) == (-value if name == "quality" else value)


def test_quality_takes_the_direction_of_its_metric():
    assert quality_of(METRICS["loss"]).goal == "minimize"
    assert quality_of(METRICS["accuracy"]).goal == "maximize"
    assert all(task in METRICS[name].tasks for task, name in DEFAULT_METRIC.items())


def test_an_objective_is_named_after_its_function_unless_it_is_said():
    def tokens(measurement):
        return measurement.steps

    assert objective(goal="maximize")(tokens).name == "tokens"
    assert objective(goal="maximize", name="t")(tokens).name == "t"


# --- somebody's own space and cost -----------------------------------------------------------------------------------


def own_problem(parameters, cost=None, limit=None):
    space = parse_space({"parameters": parameters})
    return Problem(space, (OBJECTIVES["quality"],), own_cost=cost, parameter_limit=limit)


def test_a_huge_space_of_choices_is_not_gone_through_one_by_one():
    many = {f"c{i}": {"choices": list("abcdefghijklmnop")} for i in range(20)}
    own_problem(many).check_feasible()
    own_problem(many, cost=lambda c: 5, limit=7).check_feasible()
    with pytest.raises(InfeasibleError, match="smallest configuration found here needs 5"):
        own_problem(many, cost=lambda c: 5, limit=4).check_feasible()


def test_a_budget_that_only_a_small_number_fits_is_not_refused():
    """A size that is no ordinal cannot be lowered; among draws there are small ones."""
    number = {"n": {"low": 1, "high": 1000, "integer": True, "log": True}, "r": {"ordinal": [1, 2, 4], "size": True}}
    own_problem(number, cost=lambda c: 7 * c["n"] + c["r"], limit=8).check_feasible()


@pytest.mark.parametrize(
    ("given", "said"),
    [(0.5, "0.5"), (math.nan, "nan"), (math.inf, "inf"), (None, "None"), ("3", "'3'"), (-1, "-1")],
)
def test_a_cost_that_is_no_count_is_told(given, said):
    with pytest.raises(RequestError, match=f"cost: {said} is no number.*for x=1.*whole number"):
        own_problem({"x": {"choices": [1]}}, cost=lambda c: given).check_feasible()


def test_a_cost_function_that_fails_is_told():
    with pytest.raises(RequestError, match=r"cost: ZeroDivisionError: .*by zero, for x=1"):
        own_problem({"x": {"choices": [1]}}, cost=lambda c: 1 // 0).check_feasible()


def test_whole_numbers_of_any_kind_are_counts():
    space = {"x": {"choices": [1]}}
    candidate = parse_space({"parameters": space}).complete({})
    for given in (3, 3.0, np.int64(3), np.float32(3)):
        assert own_problem(space, cost=lambda c, given=given: given).cost(candidate).adapter_params == 3
