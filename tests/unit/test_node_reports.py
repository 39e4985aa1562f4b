"""What a node's daemon may send: whatever it is, it is a report or an error."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpuspawner.gpus.allocation import with_leases
from gpuspawner.gpus.model import GPU, Holder, Lease, Node
from gpuspawner.gpus.state import MIGInstance
from gpuspawner.gpus.units import split
from gpuspawner.i18n.languages import language_for
from gpuspawner.i18n.lazy_text import LazyText, kept, lazy_gettext, lazy_ngettext
from gpuspawner.nodes.reports import (
    PROTOCOL,
    NodeContainer,
    NodeReport,
    OtherVersion,
    read_report,
    read_sentence,
    written,
)
from gpuspawner.untrusted import parse_json

UUIDS = [f"GPU-{n:08x}-aaaa-bbbb-cccc-0123456789ab" for n in range(4)]
INSTANCE = MIGInstance(
    "MIG-9f1b2c3d-0000-0000-0000-000000000000", UUIDS[3], 1, 0, "1g.5gb", 4864, 0, 0, 1, 7
)
GPUS = (
    GPU(UUIDS[0], 0, "A100", 40960, 0, 0, compute_capability="8.0", links=((UUIDS[1], 300),)),
    GPU(UUIDS[1], 1, "A100", state="foreign", reason=lazy_ngettext("A %(num)s", "B %(num)s", 2)),
    *split(GPU(UUIDS[2], 2, "T4", state="free"), {"T4": 8}, ()),
    *split(GPU(UUIDS[3], 3, "A100", state="mig", reason="in MIG mode"), {}, [INSTANCE]),
    GPU(None, 4, "unknown GPU", state="unhealthy", reason="It has fallen off the bus."),
)
REPORT = NodeReport(
    Node("", "570.133.20", "12.8", GPUS),
    "0.1",
    "b-1",
    1.5,
    0.1,
    "1.17.8",
    "28.5.2",
    containers=(NodeContainer("by-hand", "", frozenset({UUIDS[0], UUIDS[1]})),),
)


def read(value: Any) -> NodeReport:
    """As a hub reads it, from bytes."""
    return read_report(parse_json(json.dumps(value)), "atlas")


def test_a_report_comes_back_as_it_was_with_the_hubs_name_for_the_node():
    found = read(written(REPORT))
    node = Node("atlas", "570.133.20", "12.8", tuple(replace(gpu, node="atlas") for gpu in GPUS))
    assert found == replace(REPORT, node=node)
    assert [gpu.links for gpu in found.node.gpus] == [gpu.links for gpu in GPUS]
    assert {type(gpu.share) for gpu in found.node.gpus} <= {int, Fraction}
    assert isinstance(found.node.gpus[1].reason, LazyText)


def test_what_a_containers_gpus_are_called_is_read_by_the_gpus_of_its_machine():
    def named(*names: str) -> frozenset[str]:
        value = written(REPORT)
        value["containers"] = [{"name": "x\ny", "task": "abc", "gpus": [*names]}]
        found = read(value).containers
        assert found
        assert found[0].name.isprintable()
        return found[0].gpus

    assert named(UUIDS[1].lower()) == {UUIDS[1]}
    # Another machine's is none of its own, and nobody else's either.
    assert named("gpu-ffffffff-aaaa-bbbb-cccc-0123456789ab") == frozenset()
    assert named("all") == {gpu.uuid for gpu in GPUS if gpu.uuid}
    assert read({**written(REPORT), "containers": None}).containers is None
    for wrong in ([{}], "all", [{"name": "x", "task": "a b", "gpus": []}], [None]):
        with pytest.raises(ValueError, match="containers"):
            read({**written(REPORT), "containers": wrong})


def test_what_a_later_version_tells_beside_is_left_alone():
    value = written(REPORT)
    value["gpus"][0]["temperature"] = 31
    assert read({**value, "events": []}).node.gpus[0].uuid == UUIDS[0]


@pytest.mark.parametrize("value", [{}, {"protocol": PROTOCOL + 1}, {"protocol": "1"}])
def test_another_protocol_is_no_report_whatever_else_is_in_it(value):
    with pytest.raises(OtherVersion):
        read({**written(REPORT), "protocol": None, **value})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**18), 10**18)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([*UUIDS, INSTANCE.uuid, "free", "leased", "gpu", "shared", "1g.5gb", "1/8"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    return [path, *(each for key, part in inner for each in places(part, (*path, key)))]


PLACES = places(parse_json(json.dumps(written(REPORT))))


def changed(value: Any, path: tuple[Any, ...], put: Any) -> Any:
    """A JSON value with another one at a place."""
    if not path:
        return put
    key, *rest = path
    copy = value.copy()
    copy[key] = changed(value[key], tuple(rest), put)
    return copy


@settings(max_examples=400)
@given(st.lists(st.tuples(st.sampled_from(PLACES), json_values), min_size=1, max_size=3))
def test_whatever_comes_is_a_report_of_what_can_be_or_an_error(changes):
    value = parse_json(json.dumps(written(REPORT)))
    for path, put in changes:
        try:
            value = changed(value, path, put)
        except (AttributeError, IndexError, KeyError, TypeError):
            continue  # that place is gone
    try:
        node = read(value).node
    except ValueError:
        return
    chinese = language_for("zh-CN")
    units = [gpu.id for gpu in node.gpus if gpu.id]
    assert len(set(units)) == len(units)
    for gpu in node.gpus:
        assert gpu.node == "atlas"
        assert gpu.state != "leased"
        assert gpu.holder is None
        assert gpu.uuid or gpu.state != "free"
        assert 0 < gpu.share <= 1
        assert gpu.model.isprintable()
        assert str(gpu.reason).isprintable()
        assert gpu.memory_used_mib is None or gpu.memory_used_mib >= 0
        assert isinstance(chinese.say(gpu.reason), str)
    # What decides takes it.
    with_leases([node], [Lease(Holder("ann"), frozenset({UUIDS[0]}))])


# -- Sentences -------------------------------------------------------------------------------------


def test_a_sentence_of_ours_comes_back_in_both_languages():
    sentence = lazy_gettext("Machine %(node)s doesn't answer.", node=lazy_gettext("a"))
    found = read_sentence(parse_json(json.dumps(kept(sentence))))
    assert (found, type(found)) == (sentence, type(sentence))


def spelt(one: str, **values: Any) -> Any:
    return {"one": one, "many": "", "number": 1, "values": values}


@pytest.mark.parametrize(
    "value",
    [
        spelt("%(x)999999999s", x="a"),
        spelt("%(x)*s", x="a"),
        spelt("%s", x="a"),
        spelt("%(x)c", x=1),
        spelt("%(x)s", x={"form": "time", "number": 1e300}),
        spelt("%(x)s", x=spelt("%(x)s", x=spelt("%(x)s", x=spelt("%(x)s", x=spelt("deep"))))),
        {"one": ["a"], "many": "", "number": 1, "values": {}},
        {"form": "time", "number": "x"},
        {"form": "no such", "number": 1},
        [],
        None,
        7,
    ],
)
def test_a_sentence_that_would_be_costly_or_wrong_is_none(value):
    assert read_sentence(value) == ""


@given(json_values)
def test_a_sentence_is_always_one_printable_line(value):
    found = read_sentence(parse_json(json.dumps(value)))
    assert str(found).isprintable()
    assert len(found) <= 500
