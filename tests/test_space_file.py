from __future__ import annotations

import pytest
import yaml
from families import PAIRS

from autopeft.binding import bind_space
from autopeft.domains import Choices, Ordinal, Real, Whole
from autopeft.errors import RequestError
from autopeft.methods import METHODS
from autopeft.space_file import load_space, parse_space, read_space, space_names

MINIMAL = {"parameters": {"a": {"choices": [1, 2]}}}


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text, sort_keys=False))
        return str(path)

    return write


def faults_of(fields):
    with pytest.raises(RequestError) as error:
        parse_space(fields, where="s")
    return error.value.faults


@pytest.mark.parametrize("name", space_names())
@pytest.mark.parametrize(("family", "task"), PAIRS)
@pytest.mark.parametrize("cuda", [True, False])
def test_every_shipped_space_binds_to_every_family(name, family, task, cuda, anatomy_of):
    if name == "autopeft" and task == "seq2seq-lm":  # its one method has a prefix
        with pytest.raises(RequestError, match=r"here only lora, .* can be used"):
            bind_space(load_space(name), anatomy_of(family, task), cuda=cuda)
        return
    bound = bind_space(load_space(name), anatomy_of(family, task), cuda=cuda)
    assert {p.name for p in bound} >= {"method", "lr_multiple"}
    for start in bound.start:
        bound.complete(start)
    assert not any(p.per for p in bound)


@pytest.mark.parametrize("name", space_names())
def test_every_shipped_space_says_what_it_is(name):
    assert len(load_space(name).description) > 20


def test_the_default_space_holds_every_method_but_the_references_and_every_setting_of_a_single_one():
    space = load_space("default")
    domain = space.parameter("method").domain
    assert isinstance(domain, Choices)
    assert set(domain.values) == {m.name for m in METHODS.values() if not m.reference}
    known = {f"{m.name}.{setting}" for m in METHODS.values() for setting in m.settings}
    said = {p.name for p in space if "." in p.name}
    assert said <= known
    assert {name for name in known - said if "+" not in name} == {
        "serial_adapter.layers",  # the sizes say it
        "parallel_adapter.layers",
        "layer_prefix.layers",
        "serial_adapter.scaling",
        "bitfit.new",
        "top_layers.top",
    }


def test_the_references_are_offered_beside_the_strongest_methods():
    domain = load_space("reference").parameter("method").domain
    assert isinstance(domain, Choices)
    assert {m.name for m in METHODS.values() if m.reference} < set(domain.values)


def test_on_a_cpu_the_default_space_has_no_quantised_base(bert):
    bits = {cuda: bind_space(load_space("default"), bert, cuda=cuda).parameter("bits").domain for cuda in (True, False)}
    assert bits == {True: Choices((32, 16, 8, 4)), False: Choices((32, 16))}


def test_each_form_of_a_parameter_is_read():
    space = parse_space(
        {
            "parameters": {
                "c": {"choices": ["x", True, 3]},
                "o": {"ordinal": [0, 0.5, 1], "size": True},
                "r": {"low": 0.1, "high": 10, "log": True},
                "w": {"low": 1, "high": 9, "integer": True},
            }
        }
    )
    assert [p.domain for p in space] == [
        Choices(("x", True, 3)),
        Ordinal((0, 0.5, 1)),
        Real(0.1, 10, log=True),
        Whole(1, 9),
    ]
    assert [p.default for p in space] == ["x", 0.5, pytest.approx(1.0), 5]


def test_a_parameter_of_a_method_exists_for_that_method_only():
    space = parse_space({"parameters": {"lora.r": {"ordinal": [1, 2]}, "method": {"choices": ["lora", "ia3"]}}})
    assert [p.name for p in space] == ["method", "lora.r"]
    assert space.parameter("lora.r").when == {"method": ("lora",)}


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"parameters": {}}, "s: parameters: there are none; give at least one"),
        ({"paramters": {}}, "s: paramters: no field 'paramters'; did you mean 'parameters'?"),
        ({"layer_groups": "every"}, "s: layer_groups"),
        ({"layer_groups": 0}, "s: layer_groups"),
        ({"layer_groups": True}, "s: layer_groups"),
        ({"kinds": []}, "s: kinds: []"),
        ({"parameters": {"a": {"choice": [1]}}}, "s: parameters.a.choice: no field 'choice'; did you mean 'choices'?"),
        ({"parameters": {"a": {"choices": [1], "low": 1}}}, "s: a: give one of choices, ordinal, or low and high"),
        ({"parameters": {"a": {}}}, "s: a: give one of choices, ordinal, or low and high"),
        ({"parameters": {"a": {"choices": []}}}, "s: a: choices is empty"),
        ({"parameters": {"a": {"ordinal": [2, 1]}}}, "s: a: ordinal [2, 1] must be increasing numbers"),
        ({"parameters": {"a": {"ordinal": []}}}, "s: a: ordinal [] must be increasing numbers"),
        ({"parameters": {"a": {"ordinal": [1, 1]}}}, "s: a: ordinal [1, 1] must be increasing numbers"),
        ({"parameters": {"a": {"low": 1}}}, "s: a: low 1 and high None must be a range"),
        ({"parameters": {"a": {"low": 2, "high": 1}}}, "s: a: low 2 and high 1 must be a range"),
        (
            {"parameters": {"a": {"low": 0, "high": 1, "log": True}}},
            "s: a: low 0 and high 1 must be a range above 0 (log)",
        ),
        ({"parameters": {"a": {"choices": [1], "default": 2}}}, "s: a: default 2 is not in 1"),
        (
            {"parameters": {"a": {"choices": [1], "size": True}}},
            "s: a: a size must be ordinal, e.g. ordinal: [0, 1, 2, 4, 8]",
        ),
        ({"parameters": {"a": {"choices": [1], "per": "layer"}}}, "s: parameters.a.per"),
        ({"parameters": {"a": {"choices": [1], "when": {"b": [1]}}}}, "s: a: when: no parameter 'b'; known: a"),
        ({"parameters": {"a": {"choices": [1], "when": {"a": [1]}}}}, "s: a: when: depends on itself in a circle"),
        (
            {"parameters": {"method": {"choices": ["lora"]}}, "start": [{"method": "loar"}]},
            "s: start 1: method: 'loar' is not in lora",
        ),
        ({**MINIMAL, "start": [{"aa": 1}]}, "s: start 1: no parameter 'aa'; did you mean 'a'?"),
        ({**MINIMAL, "start": [{}, {"a": 3}]}, "s: start 2: a: 3 is not in 1, 2"),
        ({"parameters": {"a": {"low": 0.5, "high": 2.5, "integer": True}}}, "s: a: low 0.5 and high 2.5 must be whole"),
        ({"parameters": {"a": {"choices": [1, 1]}}}, "s: a: choices [1, 1]: 1 is there twice"),
        (
            {"parameters": {"a": {"choices": [1], "when": {"b": [3]}}, "b": {"choices": [1, 2]}}},
            "s: a: when: b: 3 is not in 1, 2",
        ),
        ({"parameters": {"a": {"choices": [1, 2], "cuda_only": [3]}}}, "s: a: cuda_only: 3 is not in 1, 2"),
        ({"parameters": {"a": {"low": float("nan"), "high": 1}}}, "s: a: low nan and high 1 must be a range"),
        ({"parameters": {"a": {"low": 1, "high": float("inf")}}}, "s: a: low 1 and high inf must be a range"),
    ],
)
def test_each_fault_is_named(change, fault):
    assert any(f.startswith(fault) for f in faults_of(change)), faults_of(change)


def test_all_faults_are_named_at_once():
    found = faults_of({"parameters": {"a": {}, "b": {"ordinal": [2, 1]}, "c": {"choices": [1], "default": 2}}})
    assert [fault.split(":")[1].strip() for fault in found] == ["a", "b", "c"]


def test_an_unknown_space_is_suggested():
    with pytest.raises(RequestError, match=r"did you mean 'default'.*or give a .yaml file"):
        load_space("defualt")


def test_an_heir_says_only_what_differs(write):
    path = write(
        "mine.yaml",
        {
            "inherit": "default",
            "parameters": {"method": {"choices": ["lora"]}, "lora.rank": {"default": 4}, "lora.dora": None},
        },
    )
    own, parent = load_space(path), load_space("default")
    assert own.parameter("lora.rank").domain == parent.parameter("lora.rank").domain
    assert own.parameter("lora.rank").default == 4
    assert own.parameter("lora.rank").size
    assert own.parameter("lora.rank").per == ("layers",)
    names = {p.name for p in own}
    assert "lora.dora" not in names
    assert not any(name.startswith("ia3.") for name in names)
    assert own.start == tuple(s for s in parent.start if s["method"] == "lora")


def test_what_an_heir_itself_says_of_a_method_that_it_leaves_out_is_a_fault(write):
    own = {"method": {"choices": ["lora", "ia3"]}, "lroa.rank": {"ordinal": [1, 2]}}
    with pytest.raises(RequestError, match=r"lroa.rank: no method 'lroa'; did you mean 'lora'"):
        load_space(write("mine.yaml", {"inherit": "default", "parameters": own}))


def test_fields_in_python_inherit_too():
    fields = read_space({"inherit": "default", "parameters": {"method": {"choices": ["ia3"]}}})
    space = parse_space(fields)
    assert {p.name.partition(".")[0] for p in space} == {"method", "bits", "lr_multiple", "ia3"}
    assert {s["method"] for s in space.start} == {"ia3"}


def test_a_new_range_replaces_the_old_one_whole(write):
    path = write("mine.yaml", {"inherit": "default", "parameters": {"lr_multiple": {"choices": [1, 2]}}})
    assert load_space(path).parameter("lr_multiple").domain == Choices((1, 2))


def test_a_space_inherits_from_a_file_beside_it(write, monkeypatch):
    write("parent.yaml", {"description": "the parent's", "parameters": {"a": {"choices": [1]}}})
    path = write("child.yaml", {"inherit": "parent.yaml", "parameters": {"b": {"choices": [2]}}})
    assert [p.name for p in load_space(path)] == ["a", "b"]


def test_inheriting_in_a_circle_is_a_fault(write):
    write("a.yaml", {"inherit": "b.yaml"})
    path = write("b.yaml", {"inherit": "a.yaml"})
    with pytest.raises(RequestError, match=r"inherits.*inherits.*break the circle"):
        load_space(path)


def test_a_parent_that_is_not_there_is_a_fault(write):
    with pytest.raises(RequestError, match=r"cannot read .*gone.yaml: No such file"):
        load_space(write("a.yaml", {"inherit": "gone.yaml"}))


def test_a_file_that_is_not_there_is_a_fault(tmp_path):
    with pytest.raises(RequestError, match="cannot read"):
        load_space(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("text", "why"),
    [("a: [1", "is not YAML"), ("- 1\n- 2\n", "holds list, not a mapping"), ("", "parameters: there are none")],
)
def test_a_file_that_is_no_space_is_a_fault(write, text, why):
    with pytest.raises(RequestError, match=why):
        load_space(write("a.yaml", text))


def test_a_file_that_is_not_text_is_a_fault(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(RequestError, match="is not YAML"):
        load_space(str(path))


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"a": {"choices": [1]}}, "needs `method` with choices"),
        ({"method": {"choices": ["loar"]}}, "did you mean 'lora'"),
        (
            {"method": {"choices": ["lora"]}, "lora.rnk": {"ordinal": [1]}},
            "no setting of lora 'rnk'; did you mean 'rank'",
        ),
        (
            {"method": {"choices": ["lora"]}, "bits": {"low": 4, "high": 16}},
            "bits: a base has 4, 8, 16 or 32; give choices",
        ),
        ({"method": {"choices": ["lora"]}, "lr_multipel": {"low": 1, "high": 2}}, "did you mean 'lr_multiple'"),
        ({"method": {"choices": ["lora"]}, "bits": {"choices": [3]}}, "bits: 3 cannot be"),
    ],
)
def test_a_space_that_means_nothing_for_peft_is_a_fault(parameters, fault, bert):
    with pytest.raises(RequestError, match=fault):
        bind_space(parse_space({"parameters": parameters}), bert, cuda=False)


@pytest.mark.parametrize(
    ("parameters", "fault"),
    [
        ({"lora.rank": {"ordinal": [-1, 2], "per": "layers"}}, "lora.rank"),
        ({"lora.rank": {"ordinal": [1, 2.5], "per": "layers"}}, "lora.rank"),
        ({"lora.alpha": {"choices": ["3r"]}}, "lora.alpha"),
        ({"lora.alpha": {"ordinal": [0, 16]}}, "lora.alpha"),
        ({"lora.dropout": {"low": 0, "high": 1.5}}, "lora.dropout"),
        ({"lora.dora": {"choices": ["yes"]}}, "lora.dora"),
        ({"lr_multiple": {"low": -1, "high": 1}}, "lr_multiple"),
        ({"lora.dora": {"choices": [True, False], "per": "layers"}}, "lora.dora: it cannot differ per layers"),
        ({"bits": {"choices": [16, 8], "per": "kinds"}}, "bits: it cannot differ per kinds"),
    ],
)
def test_a_setting_that_no_adapter_can_have_is_a_fault(parameters, fault, bert):
    """Found before any training, not as a failure of each trial."""
    with pytest.raises(RequestError, match=fault):
        bind_space(parse_space({"parameters": {"method": {"choices": ["lora"]}, **parameters}}), bert, cuda=False)
