"""Languages: none of our sentences is missing in one, and each page speaks its reader's."""

from __future__ import annotations

import ast
import copy
import gettext
import io
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from babel import Locale
from babel.messages.catalog import Message
from bs4 import BeautifulSoup

import gpuspawner
from gpuspawner.backends.docker.out_of_service import LABEL, LABEL_BY, LABEL_WHY, parse_marks
from gpuspawner.choices.limits import Limits
from gpuspawner.choices.options import Choice
from gpuspawner.dashboard.facts import status
from gpuspawner.errors import Refused
from gpuspawner.gpus import nvml
from gpuspawner.gpus.model import Holder, Request
from gpuspawner.i18n import lazy_text, phrases
from gpuspawner.i18n.languages import ENGLISH, Language, language_for, languages
from gpuspawner.i18n.lazy_text import (
    Sentence,
    join_sentences,
    kept,
    lazy_gettext,
    lazy_ngettext,
    listed,
    restored,
)
from gpuspawner.scheduling import queue
from gpuspawner.scheduling.phrases import turn_words
from gpuspawner.scheduling.plan import QueuedRequest, Turn
from scripts import catalogue

from ..support import boards as board
from ..support import shown_forms as forms

CHINESE = language_for("zh-CN")
PACKAGE = Path(gpuspawner.__file__).parent
CATALOGUES = sorted(PACKAGE.glob("i18n/locale/*/LC_MESSAGES/*.po"))
PLACE = re.compile(r"%\((\w+)\)s|\{(\w+)\}|(%%)")

# ---- The catalogues ------------------------------------------------------------------------------


def test_every_language_has_a_catalogue_and_every_catalogue_is_a_language() -> None:
    assert len(CATALOGUES) == len(languages()) - 1 > 0


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_no_sentence_is_missing_and_none_is_left_over(path: Path) -> None:
    """`make catalogues` says so too, and puts what is new where a translation belongs."""
    found = catalogue.read(path)
    needed = {(sentence.one, sentence.many) for sentence in catalogue.sentences()}
    assert {english_of(message) for message in found if message.id} == needed
    assert catalogue.missing(found) == []


def english_of(message: Message) -> tuple[str, str]:
    return message.id if message.pluralizable else (message.id, "")


def translations_of(message: Message) -> tuple[str, ...]:
    return message.string if message.pluralizable else (message.string,)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_a_translation_has_the_same_values_in_it(path: Path) -> None:
    for message in catalogue.read(path):
        one, many = english_of(message)
        for translation in filter(None, translations_of(message)):
            assert sorted(PLACE.findall(translation)) == sorted(PLACE.findall(many or one)), one


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.parts[-3])
def test_what_is_read_at_run_time_is_what_the_catalogue_says(path: Path) -> None:
    """Where this fails, `make catalogues` compiles it anew; an installation does so as well."""
    with path.with_suffix(".mo").open("rb") as file:
        compiled = gettext.GNUTranslations(file)
    for message in catalogue.read(path):
        one, many = english_of(message)
        if one:
            said = compiled.ngettext(one, many, 2) if many else compiled.gettext(one)
            assert said == translations_of(message)[-1], one


def test_a_catalogue_that_wasn_t_compiled_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "gpuspawner", ignore=shutil.ignore_patterns("*.mo"))
    done = subprocess.run(
        [sys.executable, "-c", "import gpuspawner.i18n.languages"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "gpuspawner.mo is missing: in a checkout, `make catalogues`" in done.stderr


def test_a_wheel_has_the_compiled_catalogues(tmp_path: Path) -> None:
    for name in ("gpuspawner", "image"):
        new = shutil.ignore_patterns("*.mo", "__pycache__")
        shutil.copytree(catalogue.ROOT / name, tmp_path / name, ignore=new)
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(catalogue.ROOT / name, tmp_path)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = [name for name in files.namelist() if "/locale/" in name]
        (compiled,) = names
        found = gettext.GNUTranslations(io.BytesIO(files.read(compiled)))
    assert compiled == "gpuspawner/i18n/locale/zh_CN/LC_MESSAGES/gpuspawner.mo"
    assert found.gettext("Nobody waits.") == "没有人在排队。"


def test_renewing_a_catalogue_keeps_what_is_translated_and_takes_out_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpuspawner.po"
    path.write_text(
        '# Ours.\nmsgid ""\nmsgstr ""\n"Language: zh_CN\\n"\n'
        '"Plural-Forms: nplurals=1; plural=0;\\n"\n\n'
        'msgid "kept"\nmsgstr "留"\n\n#, fuzzy\nmsgid "unsure"\nmsgstr "疑"\n\n'
        'msgid "gone"\nmsgstr "去"\n\nmsgid "a GPU"\nmsgid_plural "GPUs"\nmsgstr[0] "GPU"\n'
    )
    needed = [("kept", ""), ("unsure", ""), ("new", ""), ("a GPU", "GPUs"), ("an end", "ends")]
    monkeypatch.setattr(
        catalogue, "sentences", lambda: [catalogue.Sentence(*each, "a.py") for each in needed]
    )
    renewed = catalogue.renew(path)
    assert catalogue.missing(renewed) == ["unsure", "new", "an end"]
    read = catalogue.read(path)
    assert {message.id: message.string for message in read if message.id} == {
        "kept": "留",
        "unsure": "疑",
        "new": "",
        ("a GPU", "GPUs"): ("GPU",),
        ("an end", "ends"): ("",),
    }
    before = path.read_text()
    assert before.startswith('# Ours.\nmsgid ""\n')
    catalogue.renew(path)
    assert path.read_text() == before


def test_what_is_made_into_a_sentence_is_in_the_code_as_text() -> None:
    """What is put together elsewhere is in no catalogue."""
    known = {sentence.one for sentence in catalogue.sentences()}
    looked_at = 0
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id not in ("lazy_gettext", "lazy_ngettext", "N_"):
                continue
            first = node.args[0]
            if (path.name, type(first)) in (("pull.py", ast.Name), ("phrases.py", ast.Subscript)):
                continue  # one of REASONS, of _ORDINALS: each of those is marked
            assert isinstance(first, ast.Constant), f"{path}:{node.lineno}"
            assert first.value in known, f"{path}:{node.lineno}"
            looked_at += 1
    assert looked_at > 100


# ---- Which language ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "tag"),
    [
        ("", "en"),
        ("en-GB,en;q=0.9", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN"),
        ("ZH-cn", "zh-CN"),
        ("zh", "zh-CN"),
        ("zh-Hans-SG", "zh-CN"),
        ("zh-SG", "zh-CN"),
        ("zh-MY", "zh-CN"),
        ("zh-HK", "en"),
        ("zh-MO;q=0.9,zh-Hans;q=0.1", "zh-CN"),
        ("zh-Hant,zh;q=0", "en"),
        ("en-AU,zh-CN;q=0.9", "en"),
        ("zh-TW,zh;q=0.9,en;q=0.8", "zh-CN"),  # whose browser says that any Chinese will do
        ("zh-TW,en;q=0.8", "en"),
        ("zh-Hant-HK,en;q=0.5", "en"),
        ("de,zh-CN;q=0.7,en;q=0.3", "zh-CN"),
        ("de,en;q=0.7,zh-CN;q=0.3", "en"),
        ("en;q=0,zh;q=0.1", "zh-CN"),
        ("zh;q=0", "en"),
        ("zh;q=nonsense", "en"),
        ("de", "en"),
        ("*", "en"),
        (",;=,;q=,zh-CN", "zh-CN"),
        ("zh-CN;q=nan,en;q=0.1", "en"),
        ("../../zh-CN,zh_CN,\x00,zh--CN,zh-CN-,中文,-", "en"),
        ("zh-CN;q=٠.9", "en"),
        ("xx," * 30 + "zh-CN", "en"),
        ("x" * 100_000, "en"),
        ("zh-CN;q=0.5 , en ; q=0.4", "zh-CN"),
    ],
)
def test_the_browser_says_which_language(header: str, tag: str) -> None:
    assert language_for(header).tag == tag


# ---- Sentences -----------------------------------------------------------------------------------


def test_a_sentence_is_english_text_everywhere_but_on_a_page() -> None:
    held = str(queue.over_user_limit(Request("torch", 2), 1, 2))
    assert held == str(held) == f"{held}" == json.loads(json.dumps(held)) == "".join([held])
    assert held.startswith("You asked for 2 GPUs, your other servers have or wait for 1")
    assert CHINESE.say(held).startswith("您申请了 2 个 GPU，您的其他服务器已占用或正在等待 1 个")
    assert ENGLISH.say(held) == held


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))]
)
def test_a_copy_is_one_too(copied: Any) -> None:
    sentence = phrases.hours_words(5400)
    assert CHINESE.say(copied(sentence)) == CHINESE.say(sentence) == "1小时30分钟"


def test_what_an_exception_says_is_still_one() -> None:
    assert CHINESE.say(str(Refused(lazy_gettext("Nobody waits.")))) == "没有人在排队。"
    assert CHINESE.say(str(nvml.InventoryError(lazy_gettext("Nobody waits.")))) == "没有人在排队。"


def test_sentences_in_sentences_are_said_too() -> None:
    turn = Turn(QueuedRequest(Holder("ada"), Request("torch", 2), 0.0), 2, None)
    assert turn_words(turn).startswith("You are 2nd of 2 in line for 2 GPUs. When they will be")
    assert CHINESE.say(turn_words(turn)) == (
        "您在等 2 个 GPU，排在第 2 位，共 2 人。不知道何时会空闲：占用它们的服务器没有时限。"
    )


def test_a_list_in_words() -> None:
    assert listed(["a"], "and") == "a"
    assert listed(["a", "b", "c"], "and") == "a, b and c"
    assert listed(["a", "b"], "or") == "a or b"
    assert listed(["a", "b"]) == "a, b"
    assert listed([]) == join_sentences("", "") == ""
    assert join_sentences("A.", "", "B.") == "A. B."


def test_a_sentence_survives_the_hub_s_database() -> None:
    sentence = join_sentences(
        lazy_gettext("It is out of service: %(why)s", why="%s {x} 100%"), phrases.ordinal(3)
    )
    again = restored(json.loads(json.dumps(kept(sentence))))
    assert again == sentence
    assert CHINESE.say(again) == CHINESE.say(sentence) == "它已停用：%s {x} 100%第 3 "
    counted = lazy_ngettext("%(num)s GPU", "%(num)s GPUs", 2)
    assert CHINESE.say(restored(json.loads(json.dumps(kept(counted))))) == "2 个 GPU"
    assert restored(kept("plain")) == "plain"


def test_times_and_durations_survive_the_hub_s_database_too() -> None:
    then = time.time() + 3 * 86400
    sentence = lazy_gettext(
        "Expected about %(time)s, in %(duration)s at the latest.",
        time=phrases.clock_time(then),
        duration=phrases.hours_words(5400),
    )
    for again in (
        restored(json.loads(json.dumps(kept(sentence)))),
        pickle.loads(pickle.dumps(sentence)),
    ):
        assert again == sentence
        time_said = CHINESE.say(phrases.clock_time(then))
        assert CHINESE.say(again) == f"预计大约 {time_said}，最迟在1小时30分钟后。"


@pytest.mark.parametrize(
    "broken",
    [
        {},
        {"one": "%(x)s", "values": {}, "many": "", "number": 1},
        {"one": 3},
        {"form": "colour", "number": 3},
        {"form": "time"},
        {"form": "time", "number": "soon"},
        {"form": "time", "number": 1e30},
        {"form": ["time"], "number": 1},
        None,
        ["a"],
    ],
)
def test_what_was_kept_and_can_t_be_read_is_no_sentence(broken: Any) -> None:
    assert not isinstance(restored(broken), Sentence)


@pytest.mark.parametrize("translation", ["%(other)s", "%(size)d", "100%"])
def test_a_catalogue_that_is_wrong_is_english(translation: str) -> None:
    class Wrong(gettext.NullTranslations):
        def gettext(self, message: str) -> str:
            return translation

    sentence = lazy_text.lazy_gettext("%(size)s GB", size="many")
    assert Language("xx", Wrong()).say(sentence) == "many GB"


# ---- Times and durations -------------------------------------------------------------------------


@pytest.fixture
def in_nepal(in_zone: Callable[[str], None]) -> None:
    """A hub whose clock is 5 hours and 45 minutes ahead of UTC."""
    in_zone("Asia/Kathmandu")


def at(*date: int) -> float:
    """Return a moment by the hub's clock, in seconds since the epoch."""
    return datetime(*date).timestamp()


TODAY = (2026, 11, 28)


@pytest.fixture
def today(in_nepal: None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = at(*TODAY, 23, 30)
    monkeypatch.setattr(time, "time", lambda: now)


@pytest.mark.parametrize(
    ("date", "english", "chinese"),
    [
        ((*TODAY, 22, 50), "22:50", "22:50"),
        ((*TODAY, 0, 5), "00:05", "00:05"),
        ((2026, 11, 29, 2, 50), "Sun, Nov 29, 02:50", "11月29日周日 02:50"),
        ((2026, 11, 27, 23, 59), "Fri, Nov 27, 23:59", "11月27日周五 23:59"),
        ((2027, 1, 2, 12, 0), "Sat, Jan 2, 2027, 12:00", "2027年1月2日周六 12:00"),
    ],
)
def test_a_time_is_by_the_hub_s_clock_with_its_day_unless_that_is_today(
    date: tuple[int, ...], english: str, chinese: str, today: None
) -> None:
    found = phrases.clock_time(at(*date))
    assert found == ENGLISH.say(found) == english
    assert CHINESE.say(found) == chinese
    element = BeautifulSoup(phrases.moment(at(*date), CHINESE), "html.parser").time
    assert element
    assert element.text == chinese
    assert datetime.fromisoformat(element["datetime"]).timestamp() == at(*date)


def test_a_time_to_the_second(today: None) -> None:
    element = phrases.moment(at(*TODAY, 22, 50, 7), ENGLISH, precise=True)
    assert element.endswith(' data-form="second">22:50:07</time>')


@pytest.mark.parametrize(
    ("seconds", "english", "chinese"),
    [
        (-3, "0 seconds", "0秒钟"),
        (1, "1 second", "1秒钟"),
        (30, "30 seconds", "30秒钟"),
        (59.7, "1 minute", "1分钟"),
        (20 * 60, "20 minutes", "20分钟"),
        (3600, "1 hour", "1小时"),
        (5400, "1 hour, 30 minutes", "1小时30分钟"),
        (30 * 3600 + 10, "30 hours", "30小时"),
    ],
)
def test_a_duration(seconds: float, english: str, chinese: str) -> None:
    found = phrases.hours_words(seconds)
    assert found == english
    assert CHINESE.say(found) == chinese


@pytest.mark.parametrize(
    ("number", "words"),
    [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th"),
     (21, "21st"), (102, "102nd"), (111, "111th")],
)  # fmt: skip
def test_a_place(number: int, words: str) -> None:
    assert phrases.ordinal(number) == words
    assert CHINESE.say(phrases.ordinal(number)) == f"第 {number} "


SHAPES = {
    # Script -> what of it is called, with `at` in milliseconds and the page's `lang`.
    "choices/static/form.js": (
        r"^function localise.*?^}$",
        "const root = {lang}; const e = {dateTime: at, dataset: {}};"
        "localise({querySelectorAll: () => [e]}); e.textContent",
    ),
    "dashboard/static/dashboard.js": (
        r"^function localise.*?^}$",
        "const document = {documentElement: {lang}}; const e = {dateTime: at, dataset: {}};"
        "localise({querySelectorAll: () => [e]}); e.textContent",
    ),
    "hub/templates/gpuspawner/starting.js": (
        r"^function clock.*?^}$",
        "const language = lang; clock(at / 1000)",
    ),
    "hub/templates/gpuspawner/times.js": (
        r"^function localise.*?^}$",
        "const e = {dateTime: at, dataset: {}};"
        "localise({querySelectorAll: () => [e]}, lang); e.textContent",
    ),
    "../image/rootfs/opt/jupyter/share/jupyter/labextensions/gpuspawner/static/words.js": (
        r"^  moment\(.*?^  }$",
        "const words = {_locale: lang, moment}; words.moment(at)",
    ),
}


@pytest.mark.parametrize("script", SHAPES, ids=lambda path: Path(path).name)
def test_browsers_are_asked_for_times_in_the_same_shape(script: str) -> None:
    if not (node := shutil.which("node", path=Path(sys.executable).parent)):
        pytest.skip("no Node.js in this environment")
    pattern, call = SHAPES[script]
    found = re.search(pattern, (PACKAGE / script).read_text(), re.MULTILINE | re.DOTALL)
    assert found
    function = found[0] if found[0].startswith("function") else f"function {found[0].lstrip()}"
    for days in (0, 1, 400):
        then = time.time() // 60 * 60 + days * 86400
        for language in languages():
            values = f"const at = {then * 1000:.0f}, lang = {language.tag!r};"
            done = subprocess.run(
                [node, "-p", f"{values} {function} {call}"],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.strip() == language.say(phrases.clock_time(then))


# ---- Pages ---------------------------------------------------------------------------------------


class Brackets(gettext.NullTranslations):
    """A language in which every sentence is in brackets: what isn't was forgotten."""

    def gettext(self, message: str) -> str:
        return f"⟦{message}⟧"

    def ngettext(self, one: str, many: str, number: int) -> str:
        return f"⟦{one if number == 1 else many}⟧"


# Its times and durations are in letters that no English word has.
BRACKETS = Language("xx", Brackets(), Locale("zh"))


def forgotten(html: str, *names: str) -> list[str]:
    """Return what a page says that is no sentence of ours, and none of these names."""
    soup = BeautifulSoup(html, "html.parser")
    for element in soup(["script", "style", "time"]):
        element.decompose()
    texts = [" ".join(soup.get_text().split())]
    for attribute in ("aria-label", "title", "placeholder", "alt"):
        texts += [element[attribute] for element in soup.select(f"[{attribute}]")]
    left = []
    for text in texts:
        while text != (text := re.sub("⟦[^⟦⟧]*⟧", " ", text)):
            pass
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, " ")
        left += re.findall(r"[A-Za-z]{2,}", text)
    return left


SILENT = lazy_gettext("NVML didn't answer within %(seconds)s seconds.", seconds=9)
COMPUTES = lazy_ngettext("A process computes on it.", "%(num)s processes compute on it.", 2)
STATES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "free": (forms.LIMITS, forms.FREE, {}),
    "mixed": (forms.LIMITS, forms.MIXED, {}),
    "taken": (forms.LIMITS, forms.host(forms.gpu(0, until=4e9, **forms.TAKEN)), {}),
    "no driver": (forms.LIMITS, forms.NO_DRIVER, {}),
    "can't be read": (forms.LIMITS, None, {"trouble": SILENT}),
    "stopped": (forms.LIMITS, forms.FREE, {"notice": lazy_gettext("The server is stopped.")}),
    "odd": (
        forms.LIMITS,
        forms.host(
            forms.gpu(0, state="unhealthy", reason=lazy_gettext("Another GPU has the same UUID.")),
            forms.gpu(1, state="mig", reason=lazy_gettext("It is out of service.")),
            forms.gpu(2, state="foreign", reason=COMPUTES),
        ),
        {},
    ),
    "limits": (
        Limits(
            forms.TWO,
            "torch",
            gpus=2,
            user_gpus=2,
            group_gpus={"G": 1},
            hours=8,
            memory=1 << 30,
            processors=2.5,
            absent=frozenset({"next"}),
            models=frozenset({forms.A100}),
            waits=False,
        ),
        forms.MIXED,
        {},
    ),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_nothing_on_the_form_is_left_in_english(state: str, gpus: int) -> None:
    limits, view, more = STATES[state]
    page = forms.shown(limits, Choice(gpus=gpus), view, language=BRACKETS, **more)
    names = (forms.A100, forms.T4, "PyTorch", "CUDA 12.6", "Nets", "next", "torch", "GPU")
    assert forgotten(page, *names) == []


def test_nothing_on_the_dashboard_is_left_in_english() -> None:
    ada, ben = Holder("ada"), Holder("ben", "second")
    marks = parse_marks([{"Labels": {LABEL: "GPU-2", LABEL_WHY: "fan", LABEL_BY: "boss"}}])
    seen = board.picture(
        board.gpu(0, ada, until=4e9),
        board.gpu(1, ben),
        board.gpu(2, state="excluded", reason=marks["GPU-2"].reason),
        board.gpu(3, state="foreign", reason=lazy_gettext("in use by a program outside the hub")),
        *(board.gpu(4 + n, state=state) for n, state in enumerate(("mig", "unhealthy", "unknown"))),
        queue=[board.waits(ada), board.waits(ben, model="A100", start=4e9)],
        leases=[board.lease(ada, "GPU-0", warned=True, idle_until=4e9), board.lease(ben, "GPU-1")],
        marks=marks,
    )
    for person in (board.BOSS, board.ADA):
        page = board.render(status(seen, person), BRACKETS)
        names = ("ada", "ben", "second", "boss", "fan", "A100", "GPU", "GB", "Plain")
        assert forgotten(page, *names) == []
    for empty in (
        {"driver": None, "cuda": None},
        {"at": 0.0, "trouble": lazy_gettext("Nobody waits.")},
    ):
        page = board.render(status(board.picture(**empty), board.BOSS), BRACKETS)
        assert forgotten(page) == []


def test_what_is_forgotten_is_found() -> None:
    assert forgotten("<p>⟦Hello ⟦big⟧ world⟧ there</p>") == ["there"]
    assert forgotten('<a aria-label="Close">⟦x⟧</a>') == ["Close"]
