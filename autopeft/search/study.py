"""The study: asks for candidates, is told records, and is rebuilt from them. One driver, one writer.

The engine looks at every trial several times a proposal, so it works on a copy of the study in memory; the storage is
written to, one transaction a proposal and one a result, and read when a run is opened.
"""

from __future__ import annotations

import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from autopeft.candidates import Candidate
from autopeft.margin import safety_margin
from autopeft.plain import canonical_json
from autopeft.problem import Problem
from autopeft.records import TrialRecord
from autopeft.search.codec import decode, distributions, encode, suggest
from autopeft.search.reconciliation import CANDIDATE, disagrees, reconcile, told
from autopeft.search.rungs import Ladder, Standing
from autopeft.search.sampler import IDENTITY, SAMPLERS, FeasibleSampler, SpaceExhausted
from autopeft.search.storage import connect, faults_told, open_study

FIXED = "fixed"
STUDY_NAME = "autopeft"
PATIENCE = 8
"""Proposals in a row that must all promise little before a search counts as converged."""

optuna.logging.set_verbosity(optuna.logging.WARNING)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A trial to run, or to go on with: its number in the study, and what to try.

    Attributes:
        first: Optimiser steps that it has taken already.
        steps: Those after which it pauses; None for the end of its training.
    """

    number: int
    candidate: Candidate
    first: int = 0
    steps: int | None = None


class Study:
    """An Optuna study over a Problem: ask, promote, tell, resume.

    A number is given once. A trial that was under way when its driver died is asked for again under its number. One
    that pauses at a rung stays running to Optuna, with its held-out losses as intermediate values.

    Args:
        rungs: Steps at which trials pause; see `Ladder`.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        url: str,
        sampler: str | Callable[[int], BaseSampler],
        seed: int,
        records: Sequence[TrialRecord] = (),
        name: str = STUDY_NAME,
        rungs: Sequence[int] = (),
    ) -> None:
        self._problem = problem
        engine = SAMPLERS[sampler] if isinstance(sampler, str) else sampler
        self._feasible = FeasibleSampler(problem, engine, seed=seed)
        self._learn(records)
        with faults_told(url):
            self._storage = connect(url)
            stored = open_study(self._storage, name, problem)
            if disagrees(stored, records):
                optuna.delete_study(study_name=name, storage=self._storage)
                stored = open_study(self._storage, name, problem)
        self._study_id = stored._study_id
        self._distributions = distributions(problem.space)
        reconcile(self._storage, stored, records, problem=problem, known=self._distributions)
        self._memory = InMemoryStorage()
        self._study = optuna.create_study(
            storage=self._memory,
            directions=[o.goal for o in problem.objectives],
            sampler=self._feasible,
        )
        trials = self._storage.get_all_trials(self._study_id, deepcopy=False)
        self._study.add_trials(trials)
        self._stored_ids = [trial._trial_id for trial in trials]
        paused = {record.number for record in records if record.state == "paused"}
        unfinished = (t for t in trials if t.state is TrialState.RUNNING and t.number not in paused)
        self._again = [(t.number, Candidate(json.loads(t.user_attrs[CANDIDATE]))) for t in unfinished]
        self._enqueue_start()
        self._enqueue_stopped(records)
        self._ladder = Ladder(rungs)
        self._gains: deque[float] = deque(maxlen=PATIENCE)
        self._starts = {problem.identity(candidate) for candidate in problem.starts()} if rungs else set()
        for record in records:
            self._place(record)

    def ask(self) -> Proposal | None:
        """Propose what to begin next: cut-off trials first, then the space's start, then the engine's choice.

        Returns:
            None if nothing new is feasible any more.
        """
        if self._again:
            return Proposal(*self._again.pop(0), steps=self.first_rung)
        trial = self._study.ask()
        try:
            names = trial.user_attrs.get(FIXED) or trial.relative_params
            params = {p.name: suggest(trial, p) for p in self._problem.space if p.name in names}
        except SpaceExhausted:
            self._study.tell(trial, state=TrialState.FAIL)
            self._store(trial.number)
            return None
        if FIXED not in trial.user_attrs and (gain := self._feasible.expected_gain) is not None:
            self._gains.append(gain)
        candidate = decode(self._problem.space, params)
        trial.set_user_attr(IDENTITY, self._problem.identity(candidate))
        trial.set_user_attr(CANDIDATE, canonical_json(candidate.values))
        self._store(trial.number)
        return Proposal(trial.number, candidate, steps=self.first_rung)

    @property
    def expected_gain(self) -> float:
        """The most that one of the last proposals of this sitting was expected to gain, as a share of what its aim has
        by now; infinite while there are too few of them, or with an engine that expects nothing."""
        return max(self._gains) if len(self._gains) == PATIENCE else math.inf

    @property
    def first_rung(self) -> int | None:
        """Steps after which a new trial pauses; None if it does not."""
        return self._ladder.after(0)

    def promote(self, *, may: Callable[[Proposal], bool] = lambda _: True, closing: bool = False) -> Proposal | None:
        """Propose which paused trial to go on with, to its next rung.

        Args:
            may: Whether there is time and room to go on with one.
            closing: Whether no trial will be begun any more.

        Returns:
            None if none is worth it yet.
        """

        def onward(standing: Standing) -> Proposal:
            step = standing.result.step
            return Proposal(standing.number, standing.candidate, step, self._ladder.after(step))

        chosen = self._ladder.promote(may=lambda standing: may(onward(standing)), closing=closing)
        return None if chosen is None else onward(chosen)

    def _place(self, record: TrialRecord) -> None:
        """Note on the ladder where a trial has been, and whether it waits there."""
        if not record.rungs:
            return
        start = bool(self._starts) and self._problem.identity(record.candidate) in self._starts
        for result in record.rungs:
            waits = record.state == "paused" and result is record.rungs[-1]
            self._ladder.reach(Standing(record.number, record.candidate, result, start), pauses=waits)

    def _store(self, number: int) -> None:
        """Write a new trial down, whole or not at all: a driver that dies before it proposes the same again."""
        assert number == len(self._stored_ids), "trials are stored in the order of their numbers"
        trial = self._memory.get_trial(number)
        trial.distributions = {name: self._distributions[name] for name in trial.params}  # not each trial's own
        self._stored_ids.append(self._storage.create_new_trial(self._study_id, template_trial=trial))

    def tell(self, record: TrialRecord) -> None:
        """Tell the result of a trial; telling it twice changes nothing."""
        if self._memory.get_trial(record.number).state.is_finished():
            return
        if record.state == "paused":
            last = record.rungs[-1]
            self._storage.set_trial_intermediate_value(self._stored_ids[record.number], last.step, last.loss)
            self._memory.set_trial_intermediate_value(record.number, last.step, last.loss)
        else:
            state, values = told(record, self._problem)
            self._storage.set_trial_state_values(self._stored_ids[record.number], state, values)
            self._study.tell(record.number, values, state=state)
        self._place(record)
        self._learn([record])

    def _learn(self, records: Iterable[TrialRecord]) -> None:
        """Learn from records how far predicted memory may be off; what was learnt before stays."""
        if (limit := self._problem.memory_limit_bytes) is not None:
            self._feasible.margin = max(self._feasible.margin, safety_margin(records, limit_bytes=limit))

    def close(self) -> None:
        """Let go of the storage; of SQLite, one file is left that can be copied."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def _enqueue_start(self) -> None:
        """Queue the space's own configurations, lowered into the budget, each once, whenever the last driver died."""
        trials = self._study.get_trials(deepcopy=False)
        known = {t.user_attrs.get(IDENTITY) for t in trials}
        for candidate in self._problem.starts():
            if self._problem.refusal(candidate, margin=self._feasible.margin):
                continue
            identity = self._problem.identity(candidate)
            if identity not in known:
                known.add(identity)
                self._enqueue(candidate, identity)

    def _enqueue_stopped(self, records: Sequence[TrialRecord]) -> None:
        """Queue again what the end of the time cut off in an earlier sitting."""
        last = {t.user_attrs.get(IDENTITY): t.number for t in self._study.get_trials(deepcopy=False)}
        for record in records:
            identity = self._problem.identity(record.candidate)
            if record.state == "stopped" and last.get(identity) == record.number:
                self._enqueue(record.candidate, identity)

    def _enqueue(self, candidate: Candidate, identity: str) -> None:
        params = encode(self._problem.space, candidate)
        self._study.enqueue_trial(params, user_attrs={FIXED: sorted(params), IDENTITY: identity})
