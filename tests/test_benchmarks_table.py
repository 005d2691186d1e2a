"""The recorded table and the comparison of engines: draws, curves, volumes, and the emulated peers."""

import itertools
import math
import random
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from aims import Curves, ablation_table, aims_table
from engines import through_study
from landscape import Landscape, PaperTrainer
from live import LiveTrainer
from peers import PEERS, Asha, Spent
from recorded import candidate_of, read_table, subjects
from recording import RecordingWorker
from sampling import WEIGHTS, Known, draws, near, round_robin, strata
from small_run import make_settings, make_unit, make_worker
from surrogate import Features, OneByOne, Surrogate, forest, rung_taus
from table_columns import curve_columns, read_rows

from autopeft.binding import bind_space
from autopeft.candidates import Candidate, Cost
from autopeft.errors import TrialError
from autopeft.objectives import METRICS, OBJECTIVES, quality_of
from autopeft.problem import Problem
from autopeft.search.sampler import SAMPLERS
from autopeft.space_file import parse_space, read_space


@pytest.fixture(scope="module")
def problem(llama):
    space = bind_space(parse_space(read_space("default")), llama, cuda=False)
    known = {**OBJECTIVES, "quality": quality_of(METRICS["loss"])}
    return Problem(space, tuple(known[name] for name in ("quality", "params", "memory")), llama)


def test_of_any_first_draws_each_method_has_its_share():
    weights = {"a": 12, "b": 3, "c": 1, "d": 1}
    counts = Counter()
    for n, name in enumerate(itertools.islice(round_robin(weights), 200), start=1):
        counts[name] += 1
        assert all(abs(counts[k] - n * w / 17) < 1 + 1e-9 for k, w in weights.items())


def test_draws_are_feasible_different_and_stratified(problem):
    budgets = [400, 2000, 20_000]
    drawn = list(itertools.islice(draws(problem, budgets, list, seed=1), 59))
    assert len({problem.identity(d.candidate) for d in drawn}) == len(drawn)
    for d in drawn:
        assert problem.refusal(d.candidate) == ""
        assert 0 < problem.cost(d.candidate).trainable_params <= d.budget_params
        assert problem.space.complete(d.candidate.values) == d.candidate
    starts = [d for d in drawn if d.origin == "start"]
    assert starts
    assert drawn[: len(starts)] == starts
    expected = itertools.islice(strata(problem.space), len(drawn) - len(starts))
    assert [d.candidate["method"] for d in drawn[len(starts) :]] == list(expected)
    assert max(WEIGHTS, key=WEIGHTS.get) == "lora"


def test_draws_go_on_as_they_were(problem):
    once = list(itertools.islice(draws(problem, [5000], list, seed=3), 30))
    again = list(itertools.islice(draws(problem, [5000], list, seed=3), 30))
    other = list(itertools.islice(draws(problem, [5000], list, seed=4), 30))
    assert once == again != other


def test_every_third_later_draw_is_near_the_best_that_is_known(problem):
    best = problem.fit(problem.space.complete({"method": "ia3", "lr_multiple": 3.0}))
    worse = problem.fit(problem.space.complete({"method": "bitfit"}))
    known = [Known(best, 100, 1.0), *(Known(worse, 100, 9.0) for _ in range(2))]
    drawn = list(itertools.islice(draws(problem, [20_000], lambda: known, seed=0), 72))
    later = [d for n, d in enumerate(drawn) if n >= 60 and n % 3 == 0]
    assert [d.origin for d in later] == ["neighbour"] * 4
    assert Counter(d.candidate["method"] for d in later)["ia3"] >= 2


def test_a_neighbour_keeps_its_method_and_is_of_the_space(problem):
    candidate = problem.space.complete({"method": "lora", "lr_multiple": 3.0})
    found = [near(problem.space, candidate, random.Random(i)) for i in range(40)]
    assert {f["method"] for f in found} == {"lora"}
    assert all(problem.space.complete(f.values) == f for f in found)
    changed = [{n.partition("[")[0] for n in f.values if f[n] != candidate[n]} for f in found]
    assert max(map(len, changed)) <= 3
    assert any("lr_multiple" in c for c in changed)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    return make_settings(tmp_path_factory.mktemp, {"llama": "causal-lm"})["llama"]


def test_judging_on_the_way_changes_no_bit(setting):
    run_dir, source, anatomy = setting
    values = {"method": "lora", "lora.rank": 4, "lora.dropout": 0.1, "lr_multiple": 10}
    alone = make_worker(run_dir, source, anatomy).run(make_unit(anatomy, values, steps=6))
    settings = {"run_dir": str(run_dir), "source": asdict(source), "head": dict(anatomy.head), "metric": "loss"}
    recorder = RecordingWorker(rungs=(2, 4), **settings, head_seed=0, device="cpu", threads=1)
    judged = recorder.run(make_unit(anatomy, values, steps=6))
    assert judged.metrics == alone.metrics
    assert judged.curve == alone.curve
    assert judged.memory_bytes == alone.memory_bytes
    assert sorted(recorder.curve) == [2, 4, 6]
    assert recorder.curve[2]["loss"] > recorder.curve[4]["loss"] > recorder.curve[6]["loss"] == alone.metrics["loss"]
    assert recorder.test["loss"] > 0


def test_curves_are_columns_of_equal_length():
    columns = curve_columns({4: {"loss": 2.0, "perplexity": 7.4}, 2: {"loss": float("nan"), "perplexity": 9.0}})
    assert columns == {"rung_steps": [2, 4], "curve_loss": [None, 2.0]}


def test_a_torn_line_is_dropped_and_the_file_goes_on(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"configuration":0,"seed":0}\n{"configuration":1,"se')
    assert read_rows(path) == [{"configuration": 0, "seed": 0}]
    assert path.read_text() == '{"configuration":0,"seed":0}\n'


def test_asha_decides_as_ray_does():
    ray_bracket = pytest.importorskip("ray.tune.schedulers.async_hyperband")._Bracket(4, 36, 3, 0)

    @dataclass
    class Trial:
        trial_id: str

    asha, rng, stopped = Asha((4, 12)), np.random.default_rng(0), 0
    for i in range(200):
        for milestone, loss in zip((4, 12), rng.uniform(1, 3, 2).round(1), strict=True):
            theirs = ray_bracket.on_result(Trial(str(i)), milestone, -loss) != "STOP"
            assert asha.goes_on(milestone, loss) == theirs
            if not theirs:
                stopped += 1
                break
    assert 100 < stopped < 200


class Steps:
    """A surrogate by hand: a candidate's loss is its value `x`; seeds show up to a half more."""

    rungs = (1, 3, 9)

    def curve(self, candidate):
        return np.array([3.0, 2.0, 1.0]) * float(candidate["x"])

    def noisy_curve(self, candidate, *, seed):
        return self.curve(candidate) + random.Random(f"{seed} {candidate.key}").random() / 2

    def memory_bytes(self, candidate):
        return int(candidate["m"])


class ByHand:
    parameter_limit = 10_000

    def cost(self, candidate):
        return Cost(int(candidate["p"]))


def _landscape():
    return Landscape(ByHand(), Steps(), np.array([5.0, 10_000, 500]), np.array([0.1, 1, 1]))


def _filled(points):
    """Sum up the cells of the unit cube, between all coordinates that there are, that some point dominates."""
    grid = [sorted({0.0, 1.0, *(min(1.0, max(0.0, v)) for v in points[:, j])}) for j in range(3)]
    volume = 0.0
    for cell in itertools.product(*(itertools.pairwise(g) for g in grid)):
        if any((point <= np.array([low for low, _ in cell]) + 1e-12).all() for point in points):
            volume += float(np.prod([high - low for low, high in cell]))
    return volume


def test_volume_is_that_of_the_measured_front_counted_cell_by_cell():
    rng = random.Random(2)
    trainer, trained = PaperTrainer(_landscape(), seed=1, limit=9 * 14), []
    for _ in range(14):
        x, p, m = rng.uniform(0.5, 4), rng.randint(10, 12_000), rng.randint(20, 600)
        candidate = Candidate({"x": x, "p": p, "m": m})
        trained.append((trainer.train(candidate)[0], x, p, m))
    for n in (1, 5, 14):
        some = [row for row in trained[:n] if row[2] <= 10_000]
        on = [
            (x, p, m)
            for seen, x, p, m in some
            if not any(s <= seen and q <= p and r <= m and (s, q, r) != (seen, p, m) for s, _, q, r in some)
        ]
        points = np.array(on)
        assert sorted(map(tuple, trainer.front(9 * n))) == sorted(map(tuple, points))
        linear = (points - [0.1, 1, 1]) / (np.array([5.0, 10_000, 500]) - [0.1, 1, 1])
        ratio = linear.copy()
        ratio[:, 1:] = np.log(points[:, 1:]) / np.log([10_000, 500])
        assert trainer.volume(9 * n) == pytest.approx(_filled(ratio), abs=1e-9)
        assert trainer.volume(9 * n, linear=True) == pytest.approx(_filled(linear), abs=1e-9)
        assert trainer.best(9 * n) == min(5.0, *points[:, 0])
    assert trainer.volume(9) < trainer.volume(126)
    with pytest.raises(Spent):
        trainer.train(Candidate({"x": 1.0, "p": 1, "m": 1}))


def test_what_is_above_the_budget_is_paid_for_and_counts_for_nothing():
    trainer = PaperTrainer(_landscape(), seed=0, limit=18)
    trainer.train(Candidate({"x": 1.0, "p": 20_000, "m": 50}))
    assert (trainer.spent, trainer.volume(18)) == (9, 0.0)


def test_on_paper_a_training_goes_on_for_the_steps_that_are_new_and_counts_when_it_is_over():
    candidate = Candidate({"x": 1.0, "p": 100, "m": 50})
    whole, parts = (PaperTrainer(_landscape(), seed=0, limit=9) for _ in range(2))
    at_end = whole.train(candidate)
    losses, spent = [], []
    for first, last in ((0, 1), (1, 3), (3, 9)):
        assert parts.volume(9) == 0.0
        losses.append(parts.train(candidate, first=first, last=last)[0])
        spent.append(parts.spent)
    assert spent == [1, 3, 9]
    assert np.allclose(np.subtract(losses, [3.0, 2.0, 1.0]), losses[-1] - 1.0)  # the noise is that of one curve
    assert losses[-1] == at_end[0]
    assert parts.volume(8) == 0.0
    assert parts.volume(9) == whole.volume(9) > 0


class Slopes:
    """A surrogate by hand for candidates of a real space."""

    rungs = (4, 8, 12, 24, 36)

    def curve(self, candidate):
        return (3 + random.Random(candidate.key).random()) * np.array([1.0, 0.9, 0.8, 0.7, 0.6])

    def noisy_curve(self, candidate, *, seed):
        return self.curve(candidate)

    def memory_bytes(self, candidate):
        return 10**6


class Noting(PaperTrainer):
    """Notes what it is asked to train: (candidate, from step, to step)."""

    def train(self, candidate, *, first=0, last=None):
        if not hasattr(self, "asked"):
            self.asked = []
        found = super().train(candidate, first=first, last=last)
        self.asked.append((candidate, first, last or self.full))
        return found


@pytest.mark.parametrize(
    ("engine", "stretches"),
    [
        (through_study(SAMPLERS["random"], starts=False), {(0, 4), (4, 12), (12, 36)}),
        (through_study(SAMPLERS["random"], rungs="off"), {(0, 36)}),
        (PEERS["optunasearch-asha"], {(0, 4), (4, 12), (12, 36)}),
        (PEERS["tpe"], {(0, 36)}),
    ],
    ids=["rungs", "no rungs", "ASHA", "plain"],
)
def test_engines_take_the_steps_that_they_pay_for(problem, engine, stretches):
    limited = replace(problem, parameter_limit=2000)
    landscape = Landscape(limited, Slopes(), np.array([5.0, 2000, 2e6]), np.array([1.0, 10, 1e5]))
    trainer = Noting(landscape, 0, limit=12 * 36)
    with suppress(Spent):
        engine(trainer, 0)
    assert {(first, last) for _, first, last in trainer.asked} == stretches
    reached = Counter()
    for candidate, first, last in trainer.asked:
        assert reached[candidate] == first
        reached[candidate] = last
    ended = [candidate for candidate, at in reached.items() if at == 36 and not limited.refusal(candidate)]
    assert Counter(candidate for _, candidate, _ in trainer.finished) == Counter(ended)
    assert sum(reached.values()) <= trainer.spent <= trainer.limit
    if len(stretches) > 1:
        assert len(ended) < len(reached)


class Failing(PaperTrainer):
    """Fails at the first rung whatever is large."""

    def train(self, candidate, *, first=0, last=None):
        loss, params, memory = super().train(candidate, first=first, last=last)
        if params > 2000:
            raise TrialError("too large")
        return loss, params, memory


@pytest.mark.parametrize("name", ["optunasearch", "optunasearch-asha"])
def test_a_peer_pays_for_what_fails_and_goes_on(problem, name):
    limited = replace(problem, parameter_limit=2000)
    landscape = Landscape(limited, Slopes(), np.array([5.0, 2000, 2e6]), np.array([1.0, 10, 1e5]))
    trainer = Failing(landscape, 0, limit=12 * 36)
    with pytest.raises(Spent):
        PEERS[name](trainer, 0)
    assert trainer.finished
    assert trainer.limit - trainer.spent < 36


def test_a_live_training_of_a_peer_goes_on_as_if_it_had_not_stopped(setting, problem):
    run_dir, source, anatomy = setting
    objectives = tuple(o for o in problem.objectives if o.name != "memory")
    small = replace(problem, anatomy=anatomy, objectives=objectives, parameter_limit=3000)
    worker = make_worker(run_dir, source, anatomy)
    candidate = small.fit(small.space.complete({"method": "lora", "bits": 32, "lr_multiple": 3.0}))
    whole, parts = (LiveTrainer(small, worker, seed=0, limit=40) for _ in range(2))
    at_end = whole.train(candidate)
    on_the_way = [parts.train(candidate, first=a, last=b) for a, b in ((0, 4), (4, 12), (12, 36))]
    assert on_the_way[-1] == at_end
    assert on_the_way[0][0] > at_end[0]
    assert whole.done == parts.done == [{"quality": at_end[0], "params": at_end[1]}]
    assert (whole.begun, parts.begun) == (1, 1)
    with pytest.raises(Spent):
        parts.train(candidate, last=12)
    large = LiveTrainer(replace(small, parameter_limit=10), worker, seed=0, limit=36)
    assert large.train(candidate) == at_end
    assert large.done == []


def _curves(**volumes):
    """Make the rows of engines by hand: name -> hypervolume by whole trainings, a row a seed."""
    every = (8, 16, 24, 32, 48, 64, 96, 128, 160, 192)
    rows = []
    for name, seeds in volumes.items():
        for seed, values in enumerate(seeds):
            row = {"subject": "s", "engine": name.replace("_", "-").replace("study-", "study:")}
            shown = {n: str(values(n)) if values(n) is not None else "" for n in every}
            figures = {f"{figure}_{n}": text for n, text in shown.items() for figure in ("hv", "linear", "best")}
            rows.append(row | {"seed": str(seed)} | figures)
    return Curves(rows)


def test_aims_are_told_from_medians():
    curves = _curves(
        study_known_cost=[lambda n: n / 100 if n <= 64 else None, lambda n: n / 100, lambda n: 0.0],
        study_known_cost_no_rungs=[lambda n: n / 400],
        optunasearch=[lambda n: n / 600],
        tpe=[lambda n: n / 200],
        autopeft=[lambda n: 1.0 if n <= 32 else None],
    )
    assert curves.median("s", "study:known-cost", 32) == 0.32
    assert curves.median("s", "study:known-cost", 96) == pytest.approx(0.48)
    assert math.isnan(curves.median("s", "nobody", 8))
    assert curves.steps_to("s", "optunasearch", 0.16) == pytest.approx(96)
    assert curves.steps_to("s", "tpe", 0.05) == pytest.approx(10)
    assert curves.steps_to("s", "tpe", 0.97) == math.inf
    found = aims_table(curves, "s").splitlines()[2:]
    assert [line.rsplit("| ", 1)[1] for line in found] == [
        "0.640 and 0.960: missed |",
        "0.160 and 0.960: missed |",
        "6.0 times: met |",
        "not reached after 192, so more than 3.0 times: open |",
        "after 16.0: met |",
    ]


def test_an_ablation_compares_equal_seeds():
    curves = _curves(
        study_known_cost=[lambda n: 0.2, lambda n: 0.4, lambda n: 0.9],
        study_known_cost_cold=[lambda n: 0.3, lambda n: 0.8],
        tpe=[lambda n: 0.5],
    )
    [line] = ablation_table(curves, "s").splitlines()[2:]  # gains of .1 and .4: their deviation is .212
    assert line == "| cold | +0.250 ± 0.150 | +0.250 ± 0.150 | +0.250 ± 0.150 | 2 |"


def test_the_rungs_of_a_ranking_that_turns_around():
    losses = np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 4.0], [5.0, 5.0], [6.0, 6.0]])
    every, best = rung_taus(losses)
    assert every == [pytest.approx(0.6), 1.0]
    assert best == [-1.0, 1.0]


def test_the_forest_says_of_one_row_what_scikit_learn_says():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 5)), rng.normal(size=(60, 3))
    fitted = forest().fit(x, y)
    alone = OneByOne(fitted)
    new = rng.normal(size=(20, 5))
    assert np.allclose([alone.predict(row) for row in new], fitted.predict(new), atol=1e-12)


def test_a_surrogate_that_ranks_badly_is_refused():
    recorded = read_table(subjects()[0])
    with pytest.raises(ValueError, match=r"tau of 0\.69, under 0\.7"):
        Surrogate(recorded, quality={"tau": [0.9, 0.69]})


@pytest.mark.parametrize("key", subjects())
def test_the_committed_table_is_what_the_code_means_by_it(key):
    recorded = read_table(key)
    rows, problem = recorded.complete, recorded.problem()
    assert not recorded.rows.duplicated(["configuration", "seed"]).any()
    assert set(recorded.rows["state"]) <= {"complete", "failed"}
    assert (recorded.rows.loc[recorded.rows["state"] == "failed", "reason"] != "").all()
    assert all(tuple(steps) == recorded.rungs for steps in rows["rung_steps"])
    assert all(len(curve) == len(recorded.rungs) for curve in rows["curve_loss"])
    assert (rows["trainable_params"] <= rows["budget_params"]).all()
    assert {str(m) for m in problem.space.parameter("method").domain.values} >= set(rows["method"])
    features = Features(problem)
    widths = set()
    for row in rows.sample(12, random_state=0).itertuples():
        candidate = candidate_of(row.candidate)
        plan = problem.plan(candidate)
        assert (plan.method, plan.adapter_params, plan.bits) == (row.method, row.adapter_params, row.bits)
        assert plan.learning_rate == row.learning_rate
        widths.add(len(features.of(candidate)))
    assert len(widths) == 1


def test_the_table_is_small():
    folder = Path(__file__).parents[1] / "benchmarks" / "table"
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3e6
