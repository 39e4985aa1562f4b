"""What users send: a request where it makes sense, else one sentence that says what is wrong."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import (
    MAX_CHOICE,
    MAX_DEPTH,
    MAX_KEY,
    Choice,
    from_fields,
    gpu_count,
    image_key,
    is_too_large,
    parse,
    request,
    restore_choice,
)
from gpuspawner.errors import Refused
from gpuspawner.gpus.model import GPU, Node, Request
from gpuspawner.images.catalogue import catalogue

A100, T4 = "NVIDIA A100-SXM4-40GB", "Tesla T4"
HOST = tuple(GPU(f"GPU-{n}", n, A100 if n < 3 else T4) for n in range(4))
DRIVER = "570.133.20"
VERSIONS = catalogue(
    {
        "torch": {
            "image": "lab/torch:2.7",
            "title": "PyTorch",
            "min_driver": "525.60.13",
            "default": True,
        },
        "next": {"image": "lab/torch:next", "title": "Next", "min_driver": "600"},
        "plain": "lab/plain:1",
    }
)
LIMITS = Limits(VERSIONS, "torch", default_gpus=1, gpus=2)
UNLIMITED = replace(LIMITS, gpus=None)

KEYS = "image, gpus, model, kind, hours, not_before, safe_mode, course"
GPUS_EXPECTED = "gpus must be a whole number, 0 or more"
HOURS_EXPECTED = "hours must be a number of hours, more than 0 and at most 87600"


def nodes(gpus: Any, driver: Any = DRIVER) -> tuple[Node, ...]:
    return (Node("", driver, "12.8", tuple(gpus)),)


def refused(raw: Any, limits: Limits = LIMITS, gpus: Any = HOST, driver: Any = DRIVER) -> Refused:
    """How `raw` is refused on its whole way."""
    with pytest.raises(Refused) as found:
        request(parse(raw), limits, nodes(gpus, driver))
    return found.value


def refusal_of(raw: Any, *more: Any) -> tuple[str, int]:
    """How `raw` is refused on its whole way, as (sentence for users, status)."""
    found = refused(raw, *more)
    return str(found), found.status


def keyed_refusal_of(raw: Any, *more: Any) -> tuple[str, int]:
    """The same, as (sentence for who uses the REST API, status)."""
    found = refused(raw, *more)
    return found.keyed, found.status


def of_key(key: str, sentence: str) -> tuple[str, str]:
    """A sentence for users, and the same with the key before it."""
    return sentence, f"{key}: {sentence}"


MALFORMED = [
    ({"gpus": True}, f"{GPUS_EXPECTED}, got true."),
    ({"gpus": 1.5}, f"{GPUS_EXPECTED}, got 1.5."),
    ({"hours": 87_601}, f"{HOURS_EXPECTED}, got 87601."),
    ({"hours": 1e308}, f"{HOURS_EXPECTED}, got 1e+308."),
    ({"hours": 10**400}, f"{HOURS_EXPECTED}, got 1{'0' * 59}…."),
    ({"hours": float("inf")}, f"{HOURS_EXPECTED}, got Infinity."),
    ({"hours": float("nan")}, f"{HOURS_EXPECTED}, got NaN."),
    ({"gpus": 1.0}, f"{GPUS_EXPECTED}, got 1.0."),
    ({"gpus": "2"}, f'{GPUS_EXPECTED}, got "2".'),
    ({"gpus": -1}, f"{GPUS_EXPECTED}, got -1."),
    ({"gpus": float("nan")}, f"{GPUS_EXPECTED}, got NaN."),
    ({"gpus": float("inf")}, f"{GPUS_EXPECTED}, got Infinity."),
    ({"gpus": "all"}, f'{GPUS_EXPECTED}, got "all".'),
    ({"gpus": []}, f"{GPUS_EXPECTED}, got []."),
    ({"gpus": {"count": 1}}, f'{GPUS_EXPECTED}, got {{"count": 1}}.'),
    ({"gpus": [1, 2]}, f"{GPUS_EXPECTED}, got [1, 2]."),
    ({"image": 7}, "image must be the key of an image version, as text, got 7."),
    ({"image": ["torch"]}, 'image must be the key of an image version, as text, got ["torch"].'),
    ({"safe_mode": 1}, "safe_mode must be true or false, got 1."),
    ({"safe_mode": "true"}, 'safe_mode must be true or false, got "true".'),
    ({"model": 0}, "model must be the name of a GPU model, as text, got 0."),
    ({"model": False}, "model must be the name of a GPU model, as text, got false."),
    (
        {"gpu_ids": [0]},
        f'"gpu_ids" is not an option here (its value was [0]). The options are {KEYS}.',
    ),
    (
        {"gpus": 1, "environment": {"NVIDIA_VISIBLE_DEVICES": "all"}},
        '"environment" is not an option here '
        f'(its value was {{"NVIDIA_VISIBLE_DEVICES": "all"}}). The options are {KEYS}.',
    ),
    ({"": 1}, f'"" is not an option here (its value was 1). The options are {KEYS}.'),
    ({"GPUS": 1}, f'"GPUS" is not an option here (its value was 1). The options are {KEYS}.'),
    (None, f"The options must be an object with the keys {KEYS}, got null."),
    ([], f"The options must be an object with the keys {KEYS}, got []."),
    ("gpus=1", f'The options must be an object with the keys {KEYS}, got "gpus=1".'),
    (1, f"The options must be an object with the keys {KEYS}, got 1."),
]


@pytest.mark.parametrize(("raw", "sentence"), MALFORMED, ids=lambda each: json.dumps(each)[:40])
def test_a_malformed_choice_is_refused_with_its_key_its_value_and_what_is_expected(
    raw: Any, sentence: str
) -> None:
    assert keyed_refusal_of(raw) == (sentence, 400)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"gpus": "many"}, 'The number of GPUs must be a whole number, 0 or more, got "many".'),
        ({"image": 7}, "The image must be the key of an image version, as text, got 7."),
        ({"model": 7}, "The GPU model must be the name of a GPU model, as text, got 7."),
        (
            {"hours": -1},
            "The time must be a number of hours, more than 0 and at most 87600, got -1.",
        ),
        (
            {"safe_mode": 1},
            "Whether to start without your packages and settings must be true or false, got 1.",
        ),
    ],
)
def test_users_read_what_the_form_calls_it(raw: Any, sentence: str) -> None:
    assert refusal_of(raw) == (sentence, 400)


UNGRANTABLE = [
    # (choice, sentence for users, sentence with keys, status)
    ({"gpus": 3}, *of_key("gpus", "You asked for 3 GPUs, and your limit is 2."), 403),
    (
        {"gpus": 1, "hours": 9},
        *of_key("hours", "You asked for 9 hours, and your limit is 8 hours."),
        403,
    ),
    (
        {"image": "ubuntu"},
        'You asked for image "ubuntu", and the images you may have are: PyTorch, Next, plain.',
        'image must be one of torch, next, plain, got "ubuntu".',
        400,
    ),
    # A reference isn't a key: users pick what the administrator pinned.
    (
        {"image": "lab/torch:2.7"},
        'You asked for image "lab/torch:2.7", and the images you may have are: PyTorch, Next, '
        "plain.",
        'image must be one of torch, next, plain, got "lab/torch:2.7".',
        400,
    ),
    (
        {"model": "H100"},
        *of_key(
            "model",
            'You asked for the GPU model "H100", and this machine has no such GPU: it has '
            f"{A100}, {T4}.",
        ),
        400,
    ),
    (
        {"gpus": 2, "model": T4},
        *of_key("gpus", f"You asked for 2 {T4} GPUs, and this machine has 1."),
        400,
    ),
    (
        {"image": "next"},
        "Image Next needs driver 600 or newer, this machine has 570.133.20. "
        "Without GPUs it can be used.",
        "image: Image next needs driver 600 or newer, this machine has 570.133.20. "
        "Without GPUs it can be used.",
        400,
    ),
]


@pytest.mark.parametrize(("raw", "sentence", "keyed", "status"), UNGRANTABLE)
def test_a_choice_that_cannot_be_granted_is_refused_with_the_limit(
    raw: Any, sentence: str, keyed: str, status: int
) -> None:
    limits = replace(LIMITS, hours=8)
    assert refusal_of(raw, limits) == (sentence, status)
    assert keyed_refusal_of(raw, limits) == (keyed, status)


def test_an_image_that_isn_t_there_is_refused_by_its_title_and_to_programs_by_its_key() -> None:
    limits = replace(LIMITS, absent=frozenset({"next"}))
    words = "isn't on this machine yet. An administrator can put it there."
    assert refusal_of({"image": "next"}, limits) == (f"Image Next {words}", 503)
    assert keyed_refusal_of({"image": "next"}, limits) == (f"image: Image next {words}", 503)


def test_a_model_that_the_user_may_not_have_is_refused_with_those_they_may() -> None:
    limits = replace(UNLIMITED, models=frozenset({A100}))
    sentence = f'You asked for the GPU model "{T4}", and the models you may have are: {A100}.'
    assert refusal_of({"model": T4}, limits) == (sentence, 403)
    sentence = "You asked for 4 GPUs, and this machine has 3 that you may have."
    assert refusal_of({"gpus": 4}, limits) == (sentence, 400)


def test_more_than_the_host_has_is_refused_where_there_is_no_other_limit() -> None:
    five, one = "You asked for 5 GPUs, and this machine has 4.", "You asked for 1 GPU, and this"
    assert refusal_of({"gpus": 5}, UNLIMITED) == (five, 400)
    assert refusal_of({"gpus": 1}, UNLIMITED, ()) == (f"{one} machine has 0.", 400)


def test_a_model_on_a_host_without_gpus_is_refused() -> None:
    sentence = f'You asked for the GPU model "{T4}", and this machine has no GPU.'
    assert refusal_of({"gpus": 1, "model": T4}, UNLIMITED, ()) == (sentence, 400)


def test_a_limit_of_none_at_all_is_one_that_can_be_read() -> None:
    limits = replace(LIMITS, gpus=0)
    assert refusal_of({"gpus": 1}, limits) == ("You asked for 1 GPU, and your limit is 0.", 403)


@pytest.mark.parametrize(
    ("rules", "whose"),
    [
        ({"user_gpus": 1}, "your limit for all your servers together is 1"),
        ({"group_gpus": {"lab": 1}}, "the limit of your group lab is 1"),
        ({"group_gpus": {"lab": 4, "course": 1}}, "the limit of your group course is 1"),
        ({"user_gpus": 2, "gpus": 1}, "your limit is 1"),
    ],
)
def test_each_limit_holds_for_one_server(rules: dict[str, Any], whose: str) -> None:
    limits = replace(UNLIMITED, **rules)
    assert refusal_of({"gpus": 2}, limits) == (f"You asked for 2 GPUs, and {whose}.", 403)
    assert request(parse({"gpus": 1}), limits, nodes(HOST)) == Request("torch", 1)


GRANTED = [
    ({}, Request("torch", 1)),
    ({"image": None, "gpus": None, "model": None}, Request("torch", 1)),
    ({"image": "", "gpus": "", "model": ""}, Request("torch", 1)),
    ({"gpus": 0}, Request("torch", 0)),
    ({"gpus": 2}, Request("torch", 2)),
    ({"image": "plain"}, Request("plain", 1)),
    ({"gpus": 1, "model": T4}, Request("torch", 1, T4)),
    ({"model": T4}, Request("torch", 1, T4)),
    # Without GPUs neither the driver nor a model matters.
    ({"image": "next", "gpus": 0}, Request("next", 0)),
    ({"gpus": 0, "model": T4}, Request("torch", 0)),
    ({"gpus": 0, "model": "H100"}, Request("torch", 0)),
]


@pytest.mark.parametrize(("raw", "granted"), GRANTED)
def test_a_choice_becomes_a_request(raw: Any, granted: Request) -> None:
    assert request(parse(raw), LIMITS, nodes(HOST)) == granted


@pytest.mark.parametrize(
    ("default", "limit", "gpus", "count"),
    [
        (1, None, HOST, 1),
        (3, 2, HOST, 2),
        (3, 0, HOST, 0),
        (9, None, HOST, 4),
        (1, None, (), 0),
        (0, None, HOST, 0),
    ],
)
def test_who_asks_for_nothing_gets_the_default_within_limit_and_host(
    default: int, limit: int | None, gpus: Any, count: int
) -> None:
    limits = replace(LIMITS, default_gpus=default, gpus=limit)
    driver = DRIVER if gpus else None
    assert request(Choice(), limits, nodes(gpus, driver)) == Request("torch", count)


def test_who_asks_for_a_model_only_gets_no_more_than_there_are_of_it() -> None:
    limits = replace(LIMITS, default_gpus=2)
    assert request(Choice(model=T4), limits, nodes(HOST)) == Request("torch", 1, T4)


def test_taken_and_sick_gpus_are_waited_for_and_those_kept_out_are_not() -> None:
    states = ("leased", "foreign", "unhealthy", "unknown", "excluded", "mig")
    gpus = [GPU(f"GPU-{n}", n, A100, state=state) for n, state in enumerate(states)]
    assert request(Choice(gpus=4), UNLIMITED, nodes(gpus)).gpus == 4
    assert request(Choice(gpus=4, model=A100), UNLIMITED, nodes(gpus)).gpus == 4
    five = "You asked for 5 GPUs, and this machine has 4."
    assert refusal_of({"gpus": 5}, UNLIMITED, gpus) == (five, 400)
    kept_out = [GPU("GPU-0", 0, A100, state="excluded"), GPU("GPU-1", 1, T4, state="mig")]
    sentence, _ = refusal_of({"gpus": 1, "model": T4}, UNLIMITED, kept_out)
    assert sentence.endswith("this machine has no GPU.")


def test_where_an_administrator_allows_any_image_a_reference_is_taken_as_it_is() -> None:
    limits = replace(LIMITS, any_image=True)
    assert image_key(Choice(image="debian:12"), limits) == "debian:12"
    assert image_key(Choice(), limits) == "torch"
    # Of such an image no minimum driver is known.
    assert request(Choice(image="debian:12"), limits, nodes(HOST)) == Request("debian:12", 1)


def test_where_there_is_one_image_naming_any_is_refused() -> None:
    limits = replace(LIMITS, image_can_be_chosen=False)
    assert refusal_of({"image": "torch"}, limits) == (
        'You asked for image "torch", and on this hub there is none to choose.',
        400,
    )
    assert image_key(Choice(), limits) == "torch"


def test_the_count_is_known_before_the_host_is_looked_at() -> None:
    assert gpu_count(Choice(), replace(LIMITS, default_gpus=5)) == 2
    assert gpu_count(Choice(gpus=7), UNLIMITED) == 7
    with pytest.raises(Refused, match="limit is 2"):
        gpu_count(Choice(gpus=3), LIMITS)


def test_an_unknown_key_is_left_to_the_administrators_own_hooks() -> None:
    raw = {"gpus": 1, "room": "ml-101", "profile": {"any": ["thing"]}}
    assert parse(raw, others_allowed=True) == Choice(gpus=1)
    with pytest.raises(Refused, match="The number of GPUs must be"):
        parse({**raw, "gpus": "1"}, others_allowed=True)


@pytest.mark.parametrize("key", ["image", "model"])
def test_a_text_longer_than_any_key_is_refused_and_not_read_back_whole(key: str) -> None:
    assert parse({key: "x" * MAX_KEY}) == Choice(**{key: "x" * MAX_KEY})
    sentence, status = keyed_refusal_of({key: "x" * (MAX_CHOICE // 2)})
    assert status == 400
    assert re.fullmatch(f'{key} must be .*, got "x{{59}}…\\.', sentence)


def test_a_huge_number_is_refused_and_not_read_back_whole() -> None:
    for limits in (LIMITS, UNLIMITED):
        for huge in (10**7, 10**4000, 10**9000):
            sentence, _ = refusal_of({"gpus": huge}, limits)
            assert sentence.startswith("You asked for more than 1000000 GPUs, and ")


def test_a_lone_surrogate_is_refused_with_a_sentence_that_fits_on_a_page() -> None:
    """JSON can hold half a character, which no page and no label can."""
    raw = json.loads('{"image": "\\ud800"}')
    for limits in (LIMITS, replace(LIMITS, any_image=True)):
        sentence, status = keyed_refusal_of(raw, limits)
        assert (sentence.encode(), status) == (
            b'image must be the key of an image version, as text, got "?".',
            400,
        )
    sentence, _ = refusal_of({"\ud800": "\udfff"})
    assert sentence.encode().startswith(b'"?" is not an option here (its value was "?")')


def test_what_cannot_be_shown_is_refused_all_the_same() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(Refused) as refused:
        parse({"gpus": nested}, others_allowed=True)
    assert refused.value.keyed == f"{GPUS_EXPECTED}, got something that can't be shown."
    while nested:  # freed from the outside in, since freeing recurses as well
        nested = nested.pop()


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, {}),
        ({"image": ["torch"], "gpus": ["2"], "model": [""]}, {"image": "torch", "gpus": 2}),
        ({"gpus": ["0"]}, {"gpus": 0}),
        ({"gpus": ["-1"]}, {"gpus": -1}),
        ({"gpus": [""]}, {}),
        ({"gpus": "2"}, {"gpus": 2}),
        # What is wrong is left as it is, for parse to refuse.
        ({"gpus": ["1.5"]}, {"gpus": "1.5"}),
        ({"gpus": ["two"]}, {"gpus": "two"}),
        ({"gpus": ["٢"]}, {"gpus": "٢"}),
        ({"gpus": ["2\n"]}, {"gpus": "2\n"}),
        ({"gpus": ["9" * 10]}, {"gpus": "9" * 10}),
        ({"gpus": ["1", "2"]}, {"gpus": 1}),
        ({"gpus": []}, {"gpus": []}),
        ({"image": ["7"]}, {"image": "7"}),
        # A key that isn't ours keeps even an empty value.
        ({"room": [""]}, {"room": ""}),
        ({"room": ["a", "b"]}, {"room": ["a", "b"]}),
    ],
)
def test_fields_of_a_form_or_a_link_become_options(fields: Any, options: Any) -> None:
    assert from_fields(fields) == options


@pytest.mark.parametrize(
    ("saved", "choice"),
    [
        ({"image": "torch", "gpus": 2}, Choice(image="torch", gpus=2)),
        ({"image": "torch", "gpus": "2"}, Choice(image="torch")),
        ({"image": 7, "gpus": 2}, Choice(gpus=2)),
        ({"image": "torch", "gpus": 2, "model": 7}, Choice(image="torch", gpus=2)),
        ({"image": 7, "gpus": -1}, Choice()),
        ({"image": "torch", "removed_option": 1}, Choice(image="torch")),
        ({}, Choice()),
        (None, Choice()),
        ([], Choice()),
        ("torch", Choice()),
    ],
)
def test_a_saved_choice_is_remembered_as_far_as_it_still_makes_sense(
    saved: Any, choice: Choice
) -> None:
    assert restore_choice(saved) == choice


# What holds whatever is sent.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)  # lone surrogates too
    | st.sampled_from(["torch", "next", T4, "x" * 300]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
options_like = st.dictionaries(
    st.sampled_from(["image", "gpus", "model", "gpu_ids", "__class__", "model_config"]),
    json_values | st.integers(-2, 6),
    max_size=4,
)
some_limits = st.builds(
    Limits,
    st.just(VERSIONS),
    st.just("torch"),
    image_can_be_chosen=st.booleans(),
    any_image=st.booleans(),
    default_gpus=st.integers(0, 9),
    gpus=st.none() | st.integers(0, 9),
)


@given(json_values | options_like, some_limits, st.booleans(), st.sampled_from([HOST, ()]))
def test_whatever_is_sent_is_granted_within_the_limits_or_refused_in_one_sentence(
    raw: Any, limits: Limits, others_allowed: bool, gpus: Any
) -> None:
    refused = None
    try:
        choice = parse(raw, others_allowed)
        granted = request(choice, limits, nodes(gpus, DRIVER if gpus else None))
    except Refused as error:
        refused = error
    if refused is None:
        assert 0 <= granted.gpus <= (len(gpus) if limits.gpus is None else limits.gpus)
        assert granted.image in VERSIONS or limits.any_image
    else:
        for sentence in (str(refused), refused.keyed):
            assert sentence.encode()
            assert sentence.endswith(".")
            assert len(sentence) < 500
        assert refused.status in (400, 403)


@given(json_values | options_like)
def test_whatever_was_saved_the_form_can_be_made(saved: Any) -> None:
    choice = restore_choice(saved)
    assert parse(choice.model_dump()) == choice


@given(st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3)))
def test_whatever_fields_are_sent_keep_their_keys(fields: dict[str, list[str]]) -> None:
    assert set(from_fields(fields)) <= set(fields)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


LARGE = [
    {"gpus": "9" * MAX_CHOICE},
    {"x" * MAX_CHOICE: 1},
    {"gpus": ["1234567890"] * 1000},
    {str(number): 1 for number in range(5000)},
    {"gpus": 10 ** (20 * MAX_CHOICE)},
    {"gpus": nested(500)},
    nested(500),
]


@pytest.mark.parametrize("raw", LARGE, ids=range(len(LARGE)))
def test_a_choice_that_is_too_large_or_too_deep_is_refused_unread(raw: Any) -> None:
    assert is_too_large(raw)
    sentence, status = refusal_of(raw)
    assert sentence == "The options are too long: at most 8192 characters can be sent."
    assert status == 400
    # What an administrator's own form sends is the administrator's.
    assert isinstance(raw, list) or parse(raw | {"gpus": 1}, others_allowed=True) == Choice(gpus=1)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
)


@given(JSON)
def test_what_anybody_types_isn_t_too_large(raw: Any) -> None:
    assert not is_too_large({"gpus": 2, "image": "i" * MAX_KEY, "x": None, "hours": 1.5})
    text = json.dumps(raw)
    if is_too_large(raw):
        assert len(text) > MAX_CHOICE / 2 or text.count("[") + text.count("{") >= MAX_DEPTH
    elif len(text) > 8 * MAX_CHOICE:
        raise AssertionError("this is larger than may be kept")
