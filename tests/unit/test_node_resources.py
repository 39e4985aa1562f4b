"""The generic resources by which a node offers its GPUs to Docker Swarm."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.gpus.model import GPU
from gpuspawner.nodes.resources import as_words, is_kind, kind_of, offers, reservations, uuid_of

UUIDS = [f"GPU-{n:08x}-aaaa-bbbb-cccc-0123456789ab" for n in range(3)]
MIG = "MIG-9f1b2c3d-0000-0000-0000-000000000000"
# A label of a domain name. ref: RFC 1035, 2.3.1
LABEL = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")

uuids = st.uuids().map(str)
of_drivers = st.one_of(
    uuids.map("GPU-{}".format),
    uuids.map("MIG-{}".format),
    st.tuples(uuids, st.integers(0, 14), st.integers(0, 7)).map(
        lambda drawn: "MIG-GPU-{}/{}/{}".format(*drawn)
    ),
)
# Whatever a broken driver may call a GPU, and what looks like a kind already.
odd = st.one_of(st.text(max_size=90), of_drivers.map(lambda uuid: uuid + "-"), of_drivers)
anything = st.one_of(odd, odd.map(lambda text: f"GPU-{text}"), of_drivers.map(kind_of))


@given(of_drivers)
def test_the_kind_of_a_unit_says_its_uuid(uuid):
    assert uuid_of(kind_of(uuid)) == uuid


@given(anything)
def test_a_kind_is_a_label_of_a_domain_name(uuid):
    kind = kind_of(uuid)
    assert LABEL.fullmatch(kind)
    assert is_kind(kind)


@given(st.lists(anything, max_size=6))
def test_no_two_units_have_the_same_kind(drawn):
    # The old form of an instance has slashes, and nothing else that a driver writes reads alike.
    different = {uuid.lower().replace("/", "-") for uuid in drawn}
    assert len({kind_of(uuid) for uuid in drawn}) >= len(different)


@pytest.mark.parametrize("kind", ["", "gpu-", "gpu-1", "ssd", "gpu-" + "0" * 36, kind_of("GPU-x")])
def test_who_offers_something_else_says_no_uuid(kind):
    assert uuid_of(kind) is None


def test_a_node_offers_each_of_its_units_as_a_kind_of_its_own():
    units = [
        GPU(UUIDS[0], 0, "T4"),
        # In MIG mode only the instances are units.
        GPU(MIG, 1, "A100", kind="1g.5gb", part=0, parts=7, parent=UUIDS[1]),
        *(GPU(UUIDS[2], 2, "A100", kind="shared", part=n, parts=8) for n in range(8)),
        GPU(None, 3, "T4"),
    ]
    assert as_words(offers(units)) == [
        f"{kind_of(UUIDS[0])}=1",
        f"{kind_of(UUIDS[1])}=1",
        f"{kind_of(UUIDS[2])}=8",
        f"{kind_of(MIG)}=1",
    ]


@given(st.integers(1, 16), st.integers(1, 16), st.integers(1, 16))
def test_however_two_hubs_share_a_gpu_swarm_gives_no_more_than_the_whole(offered, one, other):
    kind = kind_of(UUIDS[0])
    whole = reservations([UUIDS[0]], {kind: offered})[kind]
    parts = [
        reservations([f"{UUIDS[0]}#0/{of}"] if of > 1 else [UUIDS[0]], {kind: offered})[kind]
        for of in (one, other)
    ]
    assert whole == offered
    # So many of each fit beside each other.
    for of, part in zip((one, other), parts, strict=True):
        assert offered // part <= of


def test_what_a_node_does_not_offer_is_not_reserved_there():
    with pytest.raises(ValueError, match=UUIDS[1]):
        reservations(UUIDS[:2], {kind_of(UUIDS[0]): 1})
