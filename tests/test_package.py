"""The package as its users meet it: what an import costs, what is public, what ships, and that its examples hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import autopeft
from autopeft.space_file import load_space, space_names

HEAVY = {"torch", "peft", "transformers", "ray", "optuna", "datasets"}
MODULES = sorted(m.name for m in pkgutil.walk_packages(autopeft.__path__, "autopeft."))
PUBLIC = ["Candidate", "Measurement", "Objective", "Pick", "Result"]
PUBLIC += ["estimate", "load", "merge", "objective", "resume", "search"]


@pytest.mark.parametrize("start", ["import autopeft", "from autopeft.cli import main; main()"])
def test_the_start_loads_none_of_the_heavy_libraries(start):
    code = f"""
import sys
sys.argv = ["autopeft", "--help"]
try:
    {start}
except SystemExit as end:
    assert not end.code, end.code
loaded = {HEAVY!r} & set(sys.modules)
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_are_these():
    assert sorted(autopeft.__all__) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_there_and_documented(name):
    assert getattr(autopeft, name).__doc__


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = autopeft.serach


def test_public_names_are_listed():
    assert set(autopeft.__all__) <= set(dir(autopeft))


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_hold(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_there_are_examples_in_the_docstrings():
    finder = doctest.DocTestFinder()
    examples = [e for name in MODULES for d in finder.find(importlib.import_module(name)) for e in d.examples]
    assert len(examples) >= 30


@pytest.mark.parametrize("name", MODULES)
def test_every_module_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize("name", space_names())
def test_every_shipped_space_has_a_description(name):
    assert load_space(name).description


def test_the_layers_of_the_package_are_in_the_wheel():
    assert {"autopeft.methods", "autopeft.search.study", "autopeft.trial.worker", "autopeft.cli"} <= set(MODULES)
