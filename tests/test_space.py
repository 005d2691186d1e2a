from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopeft.candidates import Candidate
from autopeft.domains import Choices, Ordinal, Real, Whole, middle, show_domain
from autopeft.errors import RequestError, UnknownNameError
from autopeft.space import Parameter, Space, setting_at, settings_of
from autopeft.space_file import load_space, space_names

METHOD = Parameter("method", Choices(("lora", "ia3")), "lora", {})
RANK = Parameter("lora.rank", Ordinal((0, 2, 8)), 2, {"method": ("lora",)}, per=("layers",), size=True)
SHARE = Parameter("lora.share", Ordinal((0, 0.5, 1)), 1, {"method": ("lora",)}, per=("kinds",), size=True)
BOTH = Parameter("ia3.on", Ordinal((0, 1)), 1, {"method": ("ia3",)}, per=("layers", "kinds"), size=True)
SMALL = Space((METHOD, RANK, SHARE, BOTH), layer_groups=2)

numbers = st.floats(-1e6, 1e6, allow_nan=False)
domains = st.one_of(
    st.lists(st.integers() | st.text(max_size=3), min_size=1, max_size=4).map(lambda v: Choices(tuple(v))),
    st.lists(numbers, min_size=1, max_size=5, unique=True).map(lambda v: Ordinal(tuple(sorted(v)))),
    st.tuples(numbers, numbers).filter(lambda p: p[0] < p[1]).map(lambda p: Real(*p)),
    st.tuples(st.floats(1e-6, 1), st.floats(2, 1e6)).map(lambda p: Real(*p, log=True)),
    st.tuples(st.integers(1, 9), st.integers(10, 99), st.booleans()).map(lambda p: Whole(*p)),
)


@given(domains)
def test_the_middle_of_a_domain_is_in_it(domain):
    assert domain.holds(middle(domain))


def test_domains_are_shown_as_people_write_them():
    shown = [show_domain(d) for d in (Choices(("a", 4)), Ordinal((0, 0.5)), Real(0.1, 30, log=True), Whole(1, 5))]
    assert shown == ["a, 4", "0, 0.5", "0.1 to 30 (log)", "1 to 5"]


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Choices(("a", True, 4)), ["a", True, 4, 4.0], ["b", False, 1, "4"]),
        (Ordinal((0, 1, 2)), [0, 1.0, 2], [True, 3, "1", 0.5]),
        (Real(0.1, 10, log=True), [0.1, 1, 10], [0.09, 10.1, True, "1"]),
        (Whole(1, 5), [1, 5], [0, 6, 2.0, True, "3"]),
    ],
)
def test_domains_hold_their_own_values_only(domain, inside, outside):
    assert all(domain.holds(v) for v in inside)
    assert not any(domain.holds(v) for v in outside)


def test_binding_repeats_parameters_over_layers_kinds_and_both(bert):
    bound = SMALL.bind(bert)
    kinds = ("query", "key", "value", "output", "up", "down")
    assert [p.name for p in bound] == [
        "method",
        "lora.rank[0-1]",
        "lora.rank[2]",
        *(f"lora.share[{k}]" for k in kinds),
        *(f"ia3.on[{g}/{k}]" for g in ("0-1", "2") for k in kinds),
    ]
    assert bound.parameter("lora.rank[2]").base == "lora.rank"


def test_a_space_may_say_which_kinds_are_adapted(bert):
    bound = Space(SMALL.parameters, kinds=("value", "query", "gate")).bind(bert)
    assert [p.name for p in bound if p.base == "lora.share"] == ["lora.share[value]", "lora.share[query]"]


def test_kinds_that_a_model_has_none_of_are_a_fault(bert):
    with pytest.raises(RequestError, match="has none of gate; it has query, key, value, output, up, down"):
        Space(SMALL.parameters, kinds=("gate",)).bind(bert)


def test_each_layer_may_be_its_own_group(bert):
    bound = Space(SMALL.parameters, layer_groups="each").bind(bert)
    assert [p.name for p in bound if p.base == "lora.rank"] == ["lora.rank[0]", "lora.rank[1]", "lora.rank[2]"]


def test_completing_fills_in_defaults_and_drops_what_does_not_exist(bert):
    bound = SMALL.bind(bert)
    ia3 = bound.complete({"method": "ia3", "lora.rank": 8})
    assert set(ia3.values) == {"method", *(p.name for p in bound if p.base == "ia3.on")}
    lora = bound.complete({})
    assert lora["lora.rank[0-1]"] == lora["lora.rank[2]"] == 2
    assert lora["lora.share[key]"] == 1


def test_an_assignment_speaks_of_all_of_one_or_of_some(bert):
    bound = SMALL.bind(bert)
    assert bound.complete({"lora.rank": 8})["lora.rank[2]"] == 8
    one = bound.complete({"lora.rank": 8, "lora.rank[2]": 0})
    assert (one["lora.rank[0-1]"], one["lora.rank[2]"]) == (8, 0)
    some = bound.complete({"lora.share": {"query": 1, "value": 0.5}})
    assert {k: some[f"lora.share[{k}]"] for k in ("query", "key", "value")} == {"query": 1, "key": 0, "value": 0.5}
    layers = bound.complete({"lora.rank": {"2": 8}})
    assert (layers["lora.rank[0-1]"], layers["lora.rank[2]"]) == (0, 8)


def test_a_parameter_exists_where_its_condition_holds_along_the_chain():
    a = Parameter("a", Choices((True, False)), True, {})
    b = Parameter("b", Choices(("x", "y")), "x", {"a": (True,)})
    c = Parameter("c", Real(0, 1), 0.5, {"b": ("y",)})
    space = Space((a, b, c))
    assert set(space.complete({"a": True, "b": "y"}).values) == {"a", "b", "c"}
    assert set(space.complete({"a": True, "b": "x"}).values) == {"a", "b"}
    assert set(space.complete({"a": False, "b": "y"}).values) == {"a"}


def test_all_faults_of_an_assignment_are_named_at_once(bert):
    with pytest.raises(RequestError) as error:
        SMALL.bind(bert).check({"lora.rnk": 8, "lora.rank": 3, "method": "lora", "lora.share": {"query": 7}})
    unknown, rank, share = error.value.faults
    assert "did you mean 'lora.rank'" in unknown
    assert rank == "lora.rank: 3 is not in 0, 2, 8"
    assert share == "lora.share[query]: 7 is not in 0, 0.5, 1"


def test_a_mapping_for_what_is_one_value_and_a_kind_that_no_model_has_are_faults(bert):
    with pytest.raises(RequestError) as error:
        SMALL.bind(bert).check({"method": {"query": "lora"}, "lora.share": {"qurey": 1, "gate": 1}})
    one_value, kind = error.value.faults
    assert one_value == "method: it has one value for the whole model, not {'query': 'lora'}"
    assert kind.startswith("lora.share: no kind of module 'qurey'; did you mean 'query'?")


def test_an_unknown_parameter_is_suggested():
    with pytest.raises(UnknownNameError, match=r"did you mean 'lora.rank'"):
        SMALL.parameter("lora.rang")


def test_narrowing_keeps_the_default_if_it_can_and_drops_starts_that_cannot_be():
    space = Space((METHOD, RANK), start=({"method": "ia3"}, {"lora.rank": 8}))
    narrowed = space.narrow("method", ["ia3"])
    assert narrowed.parameter("method").domain == Choices(("ia3",))
    assert narrowed.parameter("method").default == "ia3"
    assert space.narrow("method", ["lora", "ia3"]).parameter("method").default == "lora"


def test_narrowing_to_nothing_is_a_fault():
    with pytest.raises(RequestError, match=r"method may be lora, ia3; here only prompt can be used"):
        SMALL.narrow("method", ["prompt"])


def test_settings_of_a_method_are_gathered():
    candidate = Candidate({"method": "lora", "lora.rank[0-1]": 2, "lora.rank[2]": 8, "lora.dora": True, "ia3.on": 1})
    assert settings_of(candidate, "lora") == {"rank": {"0-1": 2, "2": 8}, "dora": True}


@pytest.mark.parametrize(
    ("setting", "layer", "kind", "value"),
    [
        (4, 1, "up", 4),
        ({"0-1": 4, "2": 8}, 1, "up", 4),
        ({"0-1": 4, "2": 8}, 2, None, 8),
        ({"0-1": 4}, 2, "up", 0),
        ({"up": 0.5, "down": 1}, 7, "down", 1),
        ({"up": 0.5}, 7, "down", 0),
        ({"0-1/up": 3, "0-1/down": 5}, 0, "down", 5),
        ({"0-1/up": 3}, 2, "up", 0),
        ({"10-12": 3}, 1, None, 0),
        ({"0-1": 3}, None, "up", 0),
    ],
)
def test_a_setting_is_read_at_a_module(setting, layer, kind, value):
    assert setting_at(setting, layer=layer, kind=kind) == value


@pytest.mark.parametrize("name", space_names())
def test_defaults_and_starts_of_shipped_spaces_are_complete_candidates(name, bert, llama):
    for anatomy in (bert, llama):
        bound = load_space(name).bind(anatomy)
        for start in ({}, *bound.start):
            candidate = bound.complete(start)
            assert set(candidate.values) == {p.name for p in bound.active(candidate.values)}
            for parameter in bound.active(candidate.values):
                assert parameter.domain.holds(candidate[parameter.name])
            # What a candidate says of itself gives it back.
            assert bound.complete(candidate.values) == candidate
