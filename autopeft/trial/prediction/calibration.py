"""What traces teach of a structure: linear fits, by layer, of what is kept, saved and held on the way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from autopeft.candidates import AdapterPlan
from autopeft.trial.prediction.fit import Fit, NewError, Sample
from autopeft.trial.prediction.sites import Adapted, Features, Sites, lengthens_by, plan_features, prompt_of
from autopeft.trial.prediction.trace import MemoryTrace

_Lowest = tuple[Features, Features, float, Mapping[str, float]]
"""Of the lowest layer that has a graph: its features, where the graph begins, the rows, and some of its quantities."""

RIGHT = 0.01
"""Relative error up to which an answer proves what was learnt of a structure."""


class Run(NamedTuple):
    """What was traced, with how many rows in a batch, and the trace of one step."""

    plan: AdapterPlan
    rows: int
    trace: MemoryTrace


class _Share(NamedTuple):
    """A layer's trained parameters with the optimiser's state; what its forward pass leaves for its backward pass; what
    stays of it after; and what it holds at most on the way there and back."""

    kept: float
    saved: float
    left: float
    forward: float
    backward: float


@dataclass(slots=True)
class Calibration:
    """What was learnt of a structure.

    What a layer holds on the way is fitted part by part of its passes: each is linear, the largest of them is not.

    Attributes:
        length: Tokens of a row.
        runs: What was traced.
        proven: Whether an answer has been found right; until then each is held against a trace.
        failures: How many were found wrong.
    """

    sites: Sites
    length: int
    runs: list[Run] = field(default_factory=list)
    proven: bool = False
    failures: int = 0
    _fits: dict[str, Fit] = field(default_factory=dict)
    _parts: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    _shares: dict[tuple[object, ...], _Share] = field(default_factory=dict)

    def learn(self, runs: Iterable[Run]) -> None:
        """Learn from more traces."""
        self.runs += runs
        samples: dict[str, list[Sample]] = {
            name: [] for name in ("layer", "entry", "below", "missing", "loss", "static", "trained")
        }
        lowest: list[_Lowest] = []
        for run in self.runs:
            self._read(run, samples, lowest)
        samples["layer"] = _aligned(samples["layer"])
        self._fits = {name: Fit.to(found, by_rows=name not in _BY_PLAN) for name, found in samples.items()}
        self._parts = {}
        for name in self._fits["layer"].names:
            phase, _, part = name.partition(" ")
            if part or phase != name:
                # A part inside a linear is there only where that has an adapter.
                self._parts[name] = phase, self.sites.inside(part.removeprefix("again "))
        for features, first, rows, sizes in lowest:
            try:
                whole = self._whole(features, rows)
            except NewError:
                continue
            samples["missing"].append((first, rows, {name: getattr(whole, name) - sizes[name] for name in sizes}))
        self._fits["missing"] = Fit.to(samples["missing"], by_rows=False)
        self._shares.clear()

    def judge(self, answer: int | None, run: Run) -> None:
        """Hold an answer, None where there was none, against the trace, and learn from that what is new.

        As long as no answer was right, this is asked of every plan.
        """
        if answer is not None:
            self.proven = abs(answer / run.trace.peak_bytes - 1) <= RIGHT
            self.failures += not self.proven
        if not self.proven or answer is None:
            self.learn([run])

    def _read(self, run: Run, samples: Mapping[str, list[Sample]], lowest: list[_Lowest]) -> None:
        plan, trace = run.plan, run.trace
        rows = self._rows(plan, run.rows)
        step, wide = trace.step, prompt_of(plan)
        adapted = self.sites.adapted(plan)
        begin = self._begin(plan, adapted)
        held = (step.layers[begin].entered if begin < self.sites.count else step.layers[-1].entered) - step.before
        samples["entry"].append((self._entry(plan, begin), rows, {"entry": held}))
        if begin > 0:
            most = max(size for layer in step.layers[:begin] for size in layer.forward.values())
            samples["below"].append((_constant(wide), rows, {"below": most - step.before}))
        above = sum(layer.left for layer in step.layers[begin:])
        for i, layer in enumerate(step.layers[begin:], begin):
            above -= layer.left
            features = self._features(i, adapted, wide)
            if i == begin:
                # It may have a part of a graph only, and nothing below has saved its input.
                start = step.before + held
                sizes = {
                    "saved": layer.saved,
                    "forward": max(layer.forward.values()) - start,
                    "backward": max(layer.backward.values(), default=0) - start - layer.saved - above,
                }
                lowest.append((features, self._first(plan, adapted, rows), rows, sizes))
            else:
                base = step.before + held
                quantities = {"kept": layer.kept, "saved": layer.saved, "left": layer.left}
                quantities |= {f"forward {name}": size - base for name, size in layer.forward.items()}
                base += layer.saved + above
                quantities |= {f"backward {name}": size - base for name, size in layer.backward.items()}
                samples["layer"].append((features, rows, quantities))
            held += layer.saved
        known = plan_features(plan, trace.trained_params, self.sites)
        kept = sum(layer.kept for layer in step.layers)
        samples["static"].append((known["static"], rows, {"static": step.after - kept}))
        trained = {"waiting": step.waiting, "optimizer": step.optimizer_peak - step.after}
        samples["trained"].append((known["trained"], rows, trained))
        samples["loss"].append((_constant(wide), rows, {"loss": step.loss_peak - step.before - held}))

    def peak(self, plan: AdapterPlan, trained: int, rows: float) -> int:
        """Give the peak in bytes.

        Args:
            trained: Scalars that are trained, a head's included.

        Raises:
            NewError: If the plan has something that no trace had.
        """
        if not self._fits:
            raise NewError
        rows, wide = self._rows(plan, rows), prompt_of(plan)
        adapted = self.sites.adapted(plan)
        begin = self._begin(plan, adapted)
        shares = [self._share(i, adapted, wide, rows) for i in range(self.sites.count)]
        known = plan_features(plan, trained, self.sites)
        static = self._one("static", known["static"], rows) + sum(share.kept for share in shares)
        waiting, optimizer = self._fits["trained"].at(known["trained"], rows)
        held = self._one("entry", self._entry(plan, begin), rows)
        above = sum(share.left for share in shares[begin:])
        most = self._one("below", _constant(wide), rows) if begin > 0 else 0.0
        for i, share in enumerate(shares[begin:], begin):
            above -= share.left
            passes = np.array([share.saved, share.forward, share.backward])
            if i == begin:
                passes -= self._fits["missing"].at(self._first(plan, adapted, rows), rows)
            saved, forward, backward = passes.tolist()
            most = max(most, held + forward, held + saved + above + backward)
            held += saved
        most = max(most, held + self._one("loss", _constant(wide), rows))
        return round(static + max(waiting + most, optimizer))

    def _rows(self, plan: AdapterPlan, rows: float) -> float:
        """Give the rows as long as the text, which a prompt that stands before it in the input makes longer."""
        return rows * (1 + lengthens_by(plan) / self.length)

    def _one(self, name: str, features: Features, rows: float) -> float:
        return float(self._fits[name].at(features, rows)[0])

    def _begin(self, plan: AdapterPlan, adapted: Mapping[int, Adapted]) -> int:
        """Give the lowest layer that has a graph."""
        return min(self.sites.whole_from(plan), *adapted, self.sites.count)

    def _start(self, plan: AdapterPlan, begin: int) -> str:
        """Tell what lies below the lowest layer that has a graph: more of the graph, layers, or the embedding."""
        return "graph" if self.sites.whole_from(plan) <= begin else "layers" if begin else "embedding"

    def _entry(self, plan: AdapterPlan, begin: int) -> Features:
        """Tell what is kept of all below the lowest layer that has a graph."""
        return {self._start(plan, begin): 1.0, **prompt_of(plan)}

    def _first(self, plan: AdapterPlan, adapted: Mapping[int, Adapted], rows: float) -> Features:
        """Tell where the graph of the lowest layer begins; what it does not save is activations, so many a row."""
        begin = self._begin(plan, adapted)
        start = self._start(plan, begin)
        if start == "graph" or begin not in adapted:
            return {name: size * rows for name, size in {"whole": 1.0, **prompt_of(plan)}.items()}
        # A model holds its embedding's output until the end; a later layer's input only if the layer saves it.
        return {f"{start} {self.sites.first(adapted[begin])}": float(rows)}

    def _features(self, layer: int, adapted: Mapping[int, Adapted], wide: Features) -> Features:
        # While the last one is computed again, what the head and the loss have left is there.
        top = {"top": 1.0} if layer == self.sites.count - 1 else {}
        return {**self.sites.features(self.sites.stacks[layer], adapted.get(layer, {})), **wide, **top}

    def _whole(self, features: Features, rows: float) -> _Share:
        """Give the bytes of a layer all of which has a graph."""
        fit = self._fits["layer"]
        found = dict(zip(fit.names, fit.at(features, rows).tolist(), strict=True))
        most = {"forward": 0.0, "backward": 0.0}
        for name, (phase, owner) in self._parts.items():
            if owner is None or f"on {owner}" in features:
                most[phase] = max(most[phase], found[name])
        return _Share(found["kept"], found["saved"], found["left"], **most)

    def _share(self, layer: int, adapted: Mapping[int, Adapted], wide: Features, rows: float) -> _Share:
        """Give a layer's bytes; layers adapted alike are counted once."""
        own = adapted.get(layer, {})
        top = layer == self.sites.count - 1
        key = (self.sites.stacks[layer], top, rows, tuple(own.items()), tuple(wide.values()))
        if key not in self._shares:
            self._shares[key] = self._whole(self._features(layer, adapted, wide), rows)
        return self._shares[key]


_BY_PLAN = ("static", "trained")
"""Fits of what does not depend on the batch: what is held between two steps beside `kept`; and gradients that wait
while the last part of a batch runs, and what the optimiser holds."""


def _aligned(samples: Sequence[Sample]) -> list[Sample]:
    """Give every sample all quantities: where a module has no adapter, what its parts would hold is what it holds."""
    names = list(dict.fromkeys(name for _, _, sizes in samples for name in sizes))
    return [(features, rows, {name: _nearest(name, sizes) for name in names}) for features, rows, sizes in samples]


def _nearest(name: str, sizes: Mapping[str, float]) -> float:
    """Give what is known of a part of a pass, or of the module that it is in, or of the pass's end."""
    phase, _, part = name.partition(" ")
    while f"{phase} {part}" not in sizes and part:
        part = part.rpartition(".")[0]
    return sizes.get(f"{phase} {part}" if " " in name else name, 0.0)


def _constant(wide: Features) -> Features:
    return {"1": 1.0, **wide}
