"""The stand-in that is timed has the model's own layers, at every bit-width."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import PAIRS

from autopeft.candidates import BaseFormat
from autopeft.trial.pace import seconds_per_flop, write_stand_in
from autopeft.trial.reading import read_anatomy


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_the_stand_in_has_layers_of_the_same_shapes(family, task, source_of, anatomy_of, tmp_path: Path):
    whole, stand_in = anatomy_of(family, task), read_anatomy(write_stand_in(source_of(family, task), tmp_path))
    assert stand_in.n_layers <= whole.n_layers

    def shapes(anatomy):
        return {(linear.kind, linear.fan_in, linear.fan_out) for linear in anatomy.linears}

    assert shapes(stand_in) == shapes(whole)


@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_it_is_timed_at_every_bit_width(bits, source_of):
    assert 0 < seconds_per_flop(source_of("llama", "causal-lm"), BaseFormat(bits), rows=2, length=8, device="cpu") < 1
