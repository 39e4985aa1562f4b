"""What the images add to Jupyter's server and to JupyterLab: what is asked, found and said."""

from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ..support.paths import ROOT

SITE = ROOT / "image/rootfs/opt/jupyter/lib/python3.11/site-packages"
SCRIPTS = ROOT / "image/rootfs/opt/jupyter/share/jupyter/labextensions/gpuspawner/static"
GIB = 2**30
# JupyterLab cuts a notification off after so many characters.
LONGEST = 140

# What PyTorch 2.7, PyTorch 2.1, JAX 0.6 and TensorFlow 2.15 say; numbers of a real host.
PYTORCH = (
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity "
    "of 39.39 GiB of which 9.50 GiB is free. Process 41233 has 24.00 GiB memory in use. Including "
    "non-PyTorch memory, this process has 5.25 GiB memory in use. Of the allocated memory 4.8 GiB "
    "is allocated by PyTorch, and 12.10 MiB is reserved by PyTorch but unallocated."
)
JAX = (
    "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 34359738368 bytes."
)
TENSORFLOW = "failed to allocate 2.50GiB (2684354560 bytes) from device: CUDA_ERROR_OUT_OF_MEMORY"


@pytest.fixture
def load(monkeypatch) -> Iterator[Any]:
    """Import a module of the image's, as its Python does."""
    monkeypatch.syspath_prepend(SITE)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda name: importlib.import_module(f"gpuspawner_server{name}")
    for name in [name for name in sys.modules if name.startswith("gpuspawner_")]:
        del sys.modules[name]


# ---- What is loaded when it is first asked for ---------------------------------------------------


class App:
    """As much of Jupyter's server as our extension asks for."""

    def __init__(self, enabled: dict[str, bool], servers: Any = None) -> None:
        self.jpserver_extensions = enabled
        self.config = {"ServerProxy": {"servers": servers}} if servers is not None else {}
        rules: list[Any] = ["last"]
        self.web_app = SimpleNamespace(
            settings={"base_url": "/user/ada/"}, default_router=SimpleNamespace(rules=rules)
        )
        self.log = SimpleNamespace(exception=print)

    def ask(self, path: str) -> None:
        """Let its routes look at a request's path."""
        for rule in self.web_app.default_router.rules[:-1]:
            assert rule.matcher.match(SimpleNamespace(path=path)) is None


@pytest.fixture
def ports(monkeypatch) -> list[Any]:
    """The servers that a stand-in of jupyter-server-proxy was loaded into."""
    loaded: list[Any] = []
    module = SimpleNamespace(_load_jupyter_server_extension=loaded.append)
    monkeypatch.setitem(sys.modules, "jupyter_server_proxy", module)
    monkeypatch.setenv("TENSORBOARD_PROXY_URL", "")
    monkeypatch.delenv("TENSORBOARD_PROXY_URL")
    return loaded


def test_the_way_to_ports_is_loaded_by_the_first_request_for_one(load, ports, monkeypatch) -> None:
    app = App({"jupyter_server_proxy": False})
    load("")._load_jupyter_server_extension(app)
    for path in ("/user/ada/lab", "/user/ada/proxyx", "/proxy/8000/", "/user/ben/proxy/8000/"):
        app.ask(path)
    assert ports == []
    app.ask("/user/ada/proxy/8000/")
    app.ask("/user/ada/proxy/8001/")
    assert ports == [app]


def test_an_image_that_loads_it_at_the_start_has_it_once(load, ports) -> None:
    app = App({"jupyter_server_proxy": True})
    load("")._load_jupyter_server_extension(app)
    app.ask("/user/ada/proxy/8000/")
    assert ports == []


def test_a_program_that_somebody_has_configured_is_found_under_its_name(load, ports) -> None:
    app = App({}, {"viewer": {"command": ["viewer"]}})
    load("")._load_jupyter_server_extension(app)
    app.ask("/user/ada/viewer/")
    assert ports == [app]
    app.ask("/user/ada/proxy/1/")
    assert ports == [app]


def test_tensorboard_in_a_notebook_is_shown_by_way_of_the_hub(load, ports, monkeypatch) -> None:
    import os

    load("")._load_jupyter_server_extension(App({}))
    assert os.environ["TENSORBOARD_PROXY_URL"] == "/user/ada/proxy/%PORT%/"
    monkeypatch.setenv("TENSORBOARD_PROXY_URL", "/mine/%PORT%/")
    load("")._load_jupyter_server_extension(App({}))
    assert os.environ["TENSORBOARD_PROXY_URL"] == "/mine/%PORT%/"


# ---- A GPU's memory that ran out -----------------------------------------------------------------


def process(load, pid: int, parent: int = 1, name: str = "python3.11") -> Any:
    """A process of the container."""
    return load(".processes").Process(pid, name, "S", parent, pid, 0, 0, 0)


class Container:
    """A container's /proc, and what NVML says in it."""

    def __init__(self, load: Any, folder: Path) -> None:
        self.load, self.folder = load, folder
        self.module = load(".gpu_memory")
        self.found: dict[int, Any] = {}

    def has(self, pid: int, *opened: str, parent: int = 1, words: str = "python3.11") -> None:
        """Have a process, with devices that it has open."""
        self.found[pid] = process(self.load, pid, parent, words.split()[0])
        files = self.folder / str(pid) / "fd"
        files.mkdir(parents=True)
        for number, device in enumerate(opened):
            (files / str(number)).symlink_to(device)
        (self.folder / str(pid) / "cmdline").write_text("\0".join(words.split()) + "\0")

    def explain(self, error: str, *gpus: Any, **notebooks: int) -> Any:
        """Explain an error of process 10, the kernel of train.ipynb."""
        known = {pid: f"course/{name}.ipynb" for name, pid in notebooks.items()}
        known[10] = "course/train.ipynb"
        return self.module.explain(
            error, 10, known, self.found, lambda: list(gpus), proc=self.folder
        )

    def gpu(self, minor: int, used: float, **held: float) -> Any:
        """A GPU of 40 GiB."""
        processes = {int(pid[1:]): int(size * GIB) for pid, size in held.items()}
        return self.module.GPU(minor, 40 * GIB, int(used * GIB), processes)


@pytest.fixture
def container(load, tmp_path: Path) -> Container:
    """A container."""
    return Container(load, tmp_path)


def gib(explanation: Any) -> tuple[Any, ...]:
    """Its amounts in GiB, in their order."""
    amounts = (getattr(explanation, each) for each in ("total", "free", "own", "asked"))
    return tuple(each if each is None else round(each / GIB, 2) for each in amounts)


@pytest.mark.parametrize(
    ("error", "amounts"),
    [
        (PYTORCH, (39.39, 9.5, 5.25, 20)),
        (JAX, (None, None, None, 32)),
        (TENSORFLOW, (None, None, None, 2.5)),
        ("RuntimeError: CUDA error: out of memory", (None,) * 4),
        ("Tried to allocate 1.2.3 GiB, total capacity of 9" + "9" * 400 + " GiB", (None,) * 4),
        ("", (None,) * 4),
    ],
    ids=["pytorch", "jax", "tensorflow", "cuda", "no numbers", "nothing"],
)
def test_without_nvml_it_is_what_the_error_says(container, error: str, amounts: Any) -> None:
    assert gib(container.explain(error)) == amounts


def test_who_else_is_on_the_gpu_is_named_with_what_all_of_them_hold(container) -> None:
    container.has(10, "/dev/nvidia0", "/dev/nvidiactl")
    container.has(20, "/dev/null", "/dev/nvidia0")
    container.has(30, "/dev/nvidia0", words="python3 /home/jovyan/eval.py --all")
    container.has(40, "/dev/nvidia0", words="blender")
    container.has(50, "/dev/nvidia1")
    found = container.explain(JAX, container.gpu(0, 39, p10=5, p20=30, p30=3), other=20, idle=50)
    assert gib(found) == (40, 1, 5, 32)
    assert found.others == ("blender", "eval.py", "other.ipynb")
    assert found.others_hold == 34 * GIB


def test_what_a_notebook_has_started_is_the_notebooks(container) -> None:
    container.has(10)
    container.has(11, "/dev/nvidia0", parent=10, words="bash")
    container.has(12, "/dev/nvidia0", parent=11)
    container.has(20)
    container.has(21, "/dev/nvidia0", parent=20)
    found = container.explain("", container.gpu(0, 39, p11=1, p12=4, p21=30), other=20)
    assert (found.own, found.others) == (5 * GIB, ("other.ipynb",))


def test_the_gpu_is_the_fullest_of_those_that_the_kernel_is_on(container) -> None:
    container.has(10, "/dev/nvidia1", "/dev/nvidia2")
    container.has(20, "/dev/nvidia0")
    gpus = [container.gpu(0, 40), container.gpu(1, 2), container.gpu(2, 38, p10=38)]
    assert gib(container.explain("", *gpus, other=20)) == (40, 2, 38, None)


def test_numbers_of_the_machine_are_taken_for_nobodys(container) -> None:
    """An older driver's; one of them happens to be a shell's here."""
    container.has(10, "/dev/nvidia0")
    container.has(20, parent=10, words="bash")
    alone = container.explain("", container.gpu(0, 39, p41233=30, p20=9))
    assert (alone.own, alone.others) == (39 * GIB, ())
    container.has(30, "/dev/nvidia0")
    several = container.explain("", container.gpu(0, 39, p41233=30, p20=9), other=30)
    assert (several.own, several.others, several.others_hold) == (None, ("other.ipynb",), None)


# ---- TensorBoard ---------------------------------------------------------------------------------


def test_the_logs_are_those_of_the_open_folder_and_never_all_of_the_home(load, tmp_path) -> None:
    logs_below = load(".start_tensorboard").logs_below
    assert logs_below(tmp_path, is_root=True) == tmp_path / "runs"
    assert logs_below(tmp_path, is_root=False) == tmp_path
    (tmp_path / "runs").write_text("no folder")
    (tmp_path / "logs").mkdir()
    assert logs_below(tmp_path, is_root=True) == tmp_path / "logs"
    (tmp_path / "lightning_logs").mkdir()
    assert logs_below(tmp_path, is_root=False) == tmp_path / "lightning_logs"


# ---- What JupyterLab says ------------------------------------------------------------------------


def in_node(folder: Path, code: str) -> Any:
    """Run code beside the extension's modules; return what it prints, as JSON."""
    if not (node := shutil.which("node", path=Path(sys.executable).parent)):
        pytest.skip("no Node.js in this environment")
    shutil.copytree(SCRIPTS, folder / "static")
    (folder / "package.json").write_text('{"type": "module"}')
    begin = 'Object.defineProperty(globalThis, "navigator", {value: {language: "en"}});\n'
    (folder / "code.js").write_text(begin + code)
    done = subprocess.run([node, "code.js"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Every combination of what is known, with long names and numbers.
SENTENCES = """
import { sentence } from "./static/gpu_full.js";
import { Words } from "./static/words.js";
const [big, name] = [188.5 * 2 ** 30, "x".repeat(200)];
const said = {};
for (const language of ["en", "zh-CN"]) {
  const words = new Words({ languageCode: language, load: () => undefined });
  said[language] = [];
  for (const total of [null, big]) for (const free of [null, 2 ** 30, big])
    for (const own of [null, big]) for (const asked of [null, big])
      for (const others of [[], [name], Array(12).fill(name)])
        for (const others_hold of [null, big])
          said[language].push(sentence(words, { total, free, own, asked, others, others_hold }));
}
console.log(JSON.stringify(said));
"""


def test_what_is_said_of_a_gpus_memory_fits_into_a_notification(tmp_path: Path) -> None:
    said = in_node(tmp_path, SENTENCES)
    assert max(map(len, said["en"] + said["zh-CN"])) <= LONGEST
    assert not [each for each in said["en"] + said["zh-CN"] if "{" in each or "null" in each]
    assert len(set(said["en"])) == len(set(said["zh-CN"])) > 6
    assert set(said["en"]).isdisjoint(said["zh-CN"])


SHARE = """
import { processEnded, takesTooMuch } from "./static/warnings.js";
import { Words } from "./static/words.js";
const [large, at] = [188.5 * 1024, Date.parse("2030-11-28T23:59:00Z")];
const said = {};
for (const language of ["en", "zh-CN"]) {
  const words = new Words({ languageCode: language, load: () => undefined });
  said[language] = ["end", "stop"].map((next) =>
    takesTooMuch(words, { used: large, part: large / 8, next, at })
  );
  const ended = { process: "x".repeat(15), held: large, at };
  said[language].push(processEnded(words, { part: large / 8, ended }));
  said[language].push(words.ended({ at, rule: "GPU memory", why: "" }));
}
console.log(JSON.stringify(said));
"""


def test_what_is_said_of_a_shared_gpus_memory_fits_into_a_notification(tmp_path: Path) -> None:
    said = in_node(tmp_path, SHARE)
    assert max(map(len, said["en"] + said["zh-CN"])) <= LONGEST
    assert not [each for each in said["en"] + said["zh-CN"] if "{" in each or "undefined" in each]
    assert len({*said["en"], *said["zh-CN"]}) == 8


LEASE = """
import { lease } from "./static/lease.js";
import { Warnings } from "./static/warnings.js";
import { Words } from "./static/words.js";
const MIB = 2 ** 20;
const shown = [];
const notification = {
  emit: (message) => (shown.push(message), String(shown.length)),
  update: ({ message }) => (shown.push(message), true),
  dismiss: () => shown.push(null),
};
const words = new Words({ languageCode: "en", load: () => undefined });
const warnings = new Warnings(notification, words, {});
const nothing = { next: null, at: null, ended: null };
const held = { ...nothing, guarded: true, used_bytes: 3072 * MIB, part_bytes: 5120 * MIB };
const now = new Date().toISOString();
function show(memory) {
  const quiet = { warned: false, waited_for: 0, extend_from: null, idle_since: null };
  const endless = { until: null, idle_until: null, stop: null };
  const server = { user: "ada", server: "", gpus: ["GPU-1#0/8"], memory, ...quiet, ...endless };
  const answer = { servers: [server], gpus: [], now, at: Date.now(), fresh: true };
  const facts = lease({ user: "ada", server: "" }, { gpus: 1 }, answer);
  warnings.show(facts);
  return facts.memory;
}
const parts = [show(held)];
show({ ...held, used_bytes: 6144 * MIB, next: "end", at: now });
show({ ...held, ended: { process: "python", held_bytes: 4096 * MIB, at: now } });
show(null);
console.log(JSON.stringify({ parts, shown }));
"""


def test_a_page_warns_of_a_shared_gpus_memory_while_there_is_reason_to(tmp_path: Path) -> None:
    found = in_node(tmp_path, LEASE)
    (part,) = found["parts"]
    assert part == {
        **{"guarded": True, "next": None, "used": 3072, "part": 5120, "at": None, "ended": None}
    }
    first, gone, ended, after = found["shown"]
    assert first.startswith("This server holds 6.0 GB of a shared GPU, its part is 5.0 GB. At ")
    assert first.endswith(" its largest process is ended.")
    assert gone is after is None
    assert ended.startswith("python was ended at ")


RAN_OUT = """
import { RAN_OUT } from "./static/gpu_full.js";
console.log(JSON.stringify(%s.map((error) => RAN_OUT.test(error))));
"""
OTHERS = [
    "MemoryError: Unable to allocate 80. GiB for an array",
    "RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    "google.api_core.exceptions.ResourceExhausted: 429 RESOURCE_EXHAUSTED: Quota exceeded",
    "RuntimeError: CUDA error: device-side assert triggered",
]


def test_what_isn_t_about_a_gpus_memory_is_left_alone(tmp_path: Path) -> None:
    errors = [PYTORCH, JAX, TENSORFLOW, "RuntimeError: CUDA error: out of memory", *OTHERS]
    said = in_node(tmp_path, RAN_OUT % json.dumps(errors))
    assert said == [True] * 4 + [False] * len(OTHERS)


MEMORY = """
import { MemoryItem } from "./static/memory.js";
import { Words } from "./static/words.js";
globalThis.document = {
  createElement: () => ({ classList: { toggle: (_, on) => (warns = on) }, textContent: "" }),
};
let warns;
const item = new MemoryItem(new Words(null));
const said = [];
for (const [used, limit] of [[3.1, 16], [14.39, 16], [14.4, 16], [0, 0.5], [3.1, null]]) {
  item.show({ used: used * 2 ** 30, limit: limit === null ? null : limit * 2 ** 30 });
  said.push([item.node.textContent, warns]);
}
console.log(JSON.stringify(said));
"""


def test_the_status_bar_says_how_much_memory_is_used_and_warns_from_90_percent_on(
    tmp_path: Path,
) -> None:
    assert in_node(tmp_path, MEMORY) == [
        ["Memory 3.1 of 16 GB", False],
        ["Memory 14 of 16 GB", False],
        ["Memory 14 of 16 GB, nearly full", True],
        ["Memory 0 of 0.5 GB", False],
        ["Memory 3.1 GB", False],
    ]


HOME = """
import { HomeWarning, home, homeWords } from "./static/home.js";
import { Words } from "./static/words.js";
const kept = new Map();
globalThis.sessionStorage = {
  getItem: (name) => kept.get(name) ?? null, setItem: (name, value) => kept.set(name, value),
};
const said = [];
const Notification = {
  emit: (message) => said.push(message), dismiss: () => said.push("gone"), update: () => true,
};
const words = new Words(null);
const facts = (used, more) => ({
  homes: [
    { user: "ben", server: "", used_bytes: 1, allowed_bytes: 1, nearly_full: true },
    { user: "ada", server: "other", used_bytes: 1, allowed_bytes: 1, nearly_full: true },
    { user: "ada", server: "", used_bytes: used * 2 ** 30, allowed_bytes: 50 * 2 ** 30,
      nearly_full: used >= 45, enforced: true, ...more },
  ],
});
const hub = { user: "ada", server: "lab" };
const page = new HomeWarning({ Notification }, words, "lab");
for (const answer of [null, facts(44), facts(46), facts(47), facts(12), facts(46)])
  page.show(home(hub, answer));
// The page is loaded anew, and another server's is opened.
new HomeWarning({ Notification }, words, "lab").show(home(hub, facts(46)));
new HomeWarning({ Notification }, words, "second").show(home(hub, facts(46)));
said.push(homeWords(words, home(hub, facts(12, { allowed_bytes: null }))));
console.log(JSON.stringify(said));
"""


def test_a_home_that_is_nearly_full_is_warned_of_once(tmp_path: Path) -> None:
    warning = "Your files take 46 of 50 GB. Remove what you no longer need."
    assert in_node(tmp_path, HOME) == [warning, "gone", warning, "Your files take 12 GB."]


# A restart on a clock of its own. By the second: `there`, whether the server answers, and `hub`,
# whether that restarts it (null: it doesn't say).
RESTART = """
import { Refusal } from "./static/hub.js";
import { Restart } from "./static/get_gpu.js";
import { Words } from "./static/words.js";
let now, said, scene;
Date.now = () => now * 1000;
globalThis.setTimeout = (done, ms) => { now += ms / 1000; queueMicrotask(done); };
globalThis.location = { reload: () => said.push(["back", Math.floor(now)]) };
globalThis.fetch = async () => ({ ok: scene.there(now), json: async () => ({ version: "2" }) });
const hub = {
  user: "ada", server: "lab",
  status: async () => {
    const restarting = scene.hub(now);
    if (restarting === null) throw new Refusal("Forbidden");
    const requests = [{ user: "ada", server: "", restarting: true }];
    if (restarting) requests.push({ user: "ada", server: "lab", restarting });
    return { requests };
  },
};
const notification = {
  emit: () => 1, update: ({ message }) => said.push([message, Math.floor(now)]),
};
const app = { serviceManager: { serverSettings: { baseUrl: "/user/ada/lab/" } } };
const scenes = [
  { there: (at) => at < 1 || at > 8, hub: (at) => at < 8 },
  { there: (at) => at < 1, hub: (at) => at < 8 },
  { there: (at) => at < 1 || at > 100, hub: (at) => at < 8 },
  { there: (at) => at < 1, hub: () => null },
  { there: (at) => at < 1, hub: () => true },
  // It is there at the moment at which the hub is asked.
  { there: (at) => at < 1 || asked, hub: () => { asked = true; return false; } },
];
let asked = false;
const all = [];
for (scene of scenes) {
  now = 0;
  said = [];
  await new Restart(app, notification, new Words(null), hub, "/hub/home").follow();
  all.push(said);
}
console.log(JSON.stringify(all));
"""


def test_a_restart_that_fails_is_told_of_in_seconds_and_waited_for_all_the_same(
    tmp_path: Path,
) -> None:
    back, fails, by_hand, unsure, slow, just_there = in_node(tmp_path, RESTART)
    assert back == [["back", 8]]
    gone = "The server isn't running: the home page says why."
    ((said, at),) = fails
    assert said == gone
    assert 8 <= at <= 12
    assert by_hand == [[gone, at], ["back", 100]]
    ((said, at),) = unsure
    assert said == "The server hasn't come back yet: the home page says why."
    assert 60 <= at <= 64
    assert slow == [[said, 300]]
    assert [what for what, _ in just_there] == ["back"]


PARTS = """
import { kindsOf } from "./static/get_gpu.js";
import { lease } from "./static/lease.js";
import { Words } from "./static/words.js";
const hub = { user: "ada", server: "" };
const gpu = (id, index, kind, part, state = "leased") =>
  ({ id, uuid: id, index, node: "atlas", model: "NVIDIA A100-SXM4-40GB", kind, part, state });
const gpus = [
  gpu("GPU-0", 0, "gpu", "", "mig"), gpu("MIG-1", 0, "1g.5gb", "1g.5gb"),
  gpu("GPU-1", 1, "gpu", ""),
  gpu("GPU-2#0/8", 2, "shared", "1/8"), gpu("GPU-3", 3, "gpu", "", "excluded"),
];
const of = (ids, several) => ({
  now: new Date().toISOString(), at: Date.now(), fresh: true, gpus,
  nodes: several ? [{}, {}] : [{}], queue: { waiting: [] },
  servers: [{ ...hub, gpus: ids, until: null, warned: false }],
});
const words = new Words({ languageCode: "en", load: () => undefined });
const bar = (...given) => words.gpus(lease(hub, null, of(...given)));
const row = (...given) => words.name(lease(hub, null, of(...given)).gpus[0]);
const seen = [gpus, gpus.slice(0, 2), [{ state: "free" }], undefined];
const kinds = seen.map((each) => kindsOf({ gpus: each }));
console.log(JSON.stringify({
  bars: [bar(["MIG-1"]), bar(["GPU-2#0/8"], true), bar(["GPU-1"])],
  rows: [row(["MIG-1"]), row(["GPU-2#0/8"], true), row(["GPU-1"], true)],
  kinds, said: kinds[0].map((kind) => words.kind(kind)),
}));
"""


def test_the_status_bar_says_which_part_of_a_gpu_a_server_has_and_what_there_is_to_ask_for(
    tmp_path: Path,
) -> None:
    found = in_node(tmp_path, PARTS)
    assert found["bars"] == ["GPU 0 (1g.5gb)", "atlas · GPU 2 (1/8)", "1 × A100"]
    assert found["rows"] == ["GPU 0 (1g.5gb)", "atlas · GPU 2 (1/8)", "atlas · GPU 1"]
    assert found["kinds"] == [["gpu", "1g.5gb", "shared"], ["1g.5gb"], ["gpu"], []]
    assert found["said"] == ["GPU", "1g.5gb instance", "shared GPU"]


KEPT = """
import { keptWords } from "./static/kept.js";
import { Words } from "./static/words.js";
const said = {};
for (const language of ["en", "zh-CN"]) {
  const words = new Words({ languageCode: language, load: () => undefined });
  said[language] = %s.map((kept) => keptWords(words, kept));
}
console.log(JSON.stringify(said));
"""


def test_the_launcher_says_what_a_terminal_says_of_what_is_kept(
    tmp_path, monkeypatch, load
) -> None:
    kept = importlib.import_module("gpuspawner_packages.kept")
    each = [("", False), ("/home/jovyan:/data", True), ("/home/jovyan/work:/data", False)]
    each = [(*one, apart) for one in each for apart in (False, True)]
    facts = [
        kept.kept(
            {
                "HOME": "/home/jovyan",
                "GPUSPAWNER_KEPT": folders,
                **({"GPUSPAWNER_KEPT_ON_ONE_MACHINE": "1"} if apart else {}),
            }
        )
        for folders, _, apart in each
    ]
    assert [fact.home for fact in facts] == [home for _, home, _ in each]
    given = [asdict(fact) for fact in facts]
    said = in_node(tmp_path, KEPT % json.dumps(given))
    for language, locale in (("en", "C.UTF-8"), ("zh-CN", "zh_CN.UTF-8")):
        monkeypatch.setenv("LANGUAGE", locale)
        assert said[language] == [fact.words() for fact in facts]


def test_every_chinese_sentence_of_the_extension_is_one_that_is_said() -> None:
    words = (SCRIPTS / "words.js").read_text()
    catalogue, code = words.split("const MINUTE_MS", 1)
    said = code + "".join(
        path.read_text() for path in SCRIPTS.glob("*.js") if path.name != "words.js"
    )
    import re

    keys = re.findall(r'^  (?:"((?:[^"\\]|\\.)+)"|(\w+)):', catalogue, re.MULTILINE)
    assert len(keys) > 50
    assert [a or b for a, b in keys if f'"{a or b}"' not in said] == []


INSTRUCTORS = """
import { lease, messages } from "./static/lease.js";
import { Warnings } from "./static/warnings.js";
import { Words } from "./static/words.js";
const hub = { user: "ada", server: "" };
const at = new Date("2030-11-28T23:59:00Z").toISOString();
const told = [];
const said = {};
for (const language of ["en", "zh-CN"]) {
  const words = new Words({ languageCode: language, load: () => undefined });
  const shown = [];
  const notification = { emit: (message, type) => shown.push([message, type]) };
  const warnings = new Warnings(notification, words, {});
  const mine = (id, text, server = "", user = "ada") => ({ id, text, server, user, at });
  const kept = [mine("1", "x".repeat(110)), mine("2", "no", "two"), mine("3", "no", "", "ben")];
  // A hub of before says nothing of messages.
  for (const answer of [null, {}, { messages: kept }, { messages: kept }, { messages: [] }]) {
    warnings.tell(messages(hub, answer));
  }
  warnings.tell(messages(hub, { messages: [...kept, mine("4", "<b>again</b>")] }));
  said[language] = shown;
  const stop = { at: Date.parse(at), why: "", rule: "an instructor" };
  told.push(words.stops(stop), words.stops({ ...stop, why: "over" }));
  told.push(words.ended(stop), words.ended({ ...stop, why: "over" }));
}
console.log(JSON.stringify({ said, told }));
"""


def test_what_instructors_say_is_shown_once_to_whom_it_is_for(tmp_path: Path) -> None:
    found = in_node(tmp_path, INSTRUCTORS)
    english, chinese = found["said"]["en"], found["said"]["zh-CN"]
    assert english == [
        [f"From your instructors: {'x' * 110}", "info"],
        ["From your instructors: <b>again</b>", "info"],
    ]
    assert [words for words, _ in chinese] == [f"课程教师：{'x' * 110}", "课程教师：<b>again</b>"]
    assert max(len(words) for words, _ in english + chinese) <= LONGEST
    told = found["told"]
    assert len(set(told)) == 8
    assert all("nstructor" in each for each in told[:4])
    assert all("教师" in each for each in told[4:])
