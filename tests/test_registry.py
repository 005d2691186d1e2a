from __future__ import annotations

import pytest

from autopeft.errors import RequestError, UnknownNameError
from autopeft.registry import Table, unknown


def test_failed_look_up_names_what_exists_and_what_was_meant():
    with pytest.raises(UnknownNameError) as error:
        Table(lora=1, vera=2)["loar"]
    assert str(error.value) == "no 'loar'; did you mean 'lora'? known: lora, vera"


def test_nothing_near_gives_no_suggestion():
    assert str(unknown("zzz", ["lora"], what="method")) == "no method 'zzz'; known: lora"


def test_failed_look_up_is_a_fault_of_the_request_and_a_key_error():
    with pytest.raises(RequestError) as error:
        Table()["a"]
    assert isinstance(error.value, KeyError)
    assert error.value.faults == ("no 'a'; known: ",)


def test_table_is_a_mapping():
    table = Table(a=1)
    assert dict(table) == {"a": 1}
    assert "a" in table
    assert table.get("b") is None


def test_a_name_that_is_no_text_is_shown():
    assert "no 3" in str(unknown(3, ["a"]))
