"""`gpuspawner simulate`: its words, its answers, and the signals that end it."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import time

import pytest

from gpuspawner.simulation import changes, command, running_host
from gpuspawner.simulation.events import SimulatedEvent
from gpuspawner.simulation.state import describe

from ..support.labs import STATE, UUIDS, ended, left_by, simulate, until


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("gpu 1 process 4242 2000", "processes", ((4242, 2000),)),
        (f"gpu {UUIDS[1]} process 7 5", "processes", ((7, 5),)),
        ("gpu 1 use 93", "utilization_percent", 93),
        ("gpu 1 memory 1024", "memory_used_mib", 1024),
        ("gpu 1 lost", "fault", "lost"),
        ("gpu 1 sick", "fault", "reset_required"),
        ("gpu 1 mig on", "mig", True),
        ("gpu 1 mig pending on", "mig_pending", True),
        ("gpu 1 mig pending off", "mig_pending", None),
        ("gpu 1 unreachable", "fault", "unreachable"),
        ("gpu 1 xid 79", "events", (SimulatedEvent(1, "xid", 79),)),
        ("gpu 1 recovery none", "events", (SimulatedEvent(1, "recovery_action"),)),
        ("gpu 1 clocks overheated", "clocks_event_reasons", 0x48),
        ("gpu 1 fabric in_progress", "fabric", "in_progress"),
        ("gpu 1 mode exclusive_process", "compute_mode", "exclusive_process"),
        ("gpu 1 function nvmlDeviceGetName 999", "function_faults", (("nvmlDeviceGetName", 999),)),
    ],
)
def test_a_change_in_words_changes_one_gpu(text, field, value):
    changed = changes.parse(text)(STATE)
    assert getattr(changed.gpu(1), field) == value
    assert [changed.gpu(i) for i in (0, 2, 3)] == [STATE.gpu(i) for i in (0, 2, 3)]
    assert changed.gpu(1) == STATE.with_gpu(1, **{field: value}).gpu(1)


@pytest.mark.parametrize(
    "texts",
    [
        ("gpu 0 process 4 2", "gpu 0 process 4 ended"),
        ("gpu 0 lost", "gpu 0 healed"),
        ("gpu 0 sick", "gpu 0 healed"),
        ("gpu 0 mig on", "gpu 0 mig off"),
        ("gpu 0 unreachable", "gpu 0 healed"),
        ("gpu 0 mig pending on", "gpu 0 reset", "gpu 0 mig off"),
        ("gpu 0 clocks hot", "gpu 0 clocks free"),
        ("gpu 0 sick", "gpu 0 reset"),
        ("gpu 0 function nvmlDeviceGetName 15", "gpu 0 function nvmlDeviceGetName works"),
        ("function nvmlDeviceGetName 15", "function nvmlDeviceGetName works"),
        ("driver gone", "driver back"),
        ("slow 5", "slow 0"),
    ],
)
def test_a_change_can_be_taken_back(texts):
    first, *others = map(changes.parse, texts)
    state = first(STATE)
    assert state != STATE
    for each in others:
        state = each(state)
    assert state == STATE


def changed(*texts):
    """The first GPU after these changes."""
    state = STATE
    for text in texts:
        state = changes.parse(text)(state)
    return state.gpu(0)


def test_a_memory_error_is_counted_and_reported_and_a_reset_ends_it():
    gpu = changed("gpu 0 ecc 2")
    assert (gpu.ecc_errors, gpu.events) == (2, (SimulatedEvent(1, "double_bit_ecc"),))
    assert changed("gpu 0 ecc 2", "gpu 0 ecc 1").events == gpu.events
    assert changed("gpu 0 ecc 2", "gpu 0 reset").ecc_errors == 0


def test_a_remapping_waits_for_a_reset_or_has_failed():
    gpu = changed("gpu 0 remap pending")
    assert (gpu.remap_pending, gpu.recovery_action) == (True, "drain_and_reset")
    assert gpu.events == (SimulatedEvent(1, "recovery_action"),)
    well = changed("gpu 0 remap pending", "gpu 0 reset")
    assert (well.remap_pending, well.recovery_action) == (False, "none")
    failed = changed("gpu 0 remap failed", "gpu 0 reset")
    assert (failed.remap_pending, failed.remap_failed) == (False, True)


def test_the_last_events_are_kept_and_numbered():
    events = changed(*["gpu 0 xid 31"] * 20, "gpu 0 xid 79").events
    assert [each.number for each in events] == list(range(6, 22))
    assert events[-1].data == 79


def test_mig_instances_are_made_used_and_destroyed():
    divided = "gpu 0 instances 3g.20gb, 1g.5gb x2"
    gpu = changed(divided, "gpu 0 instance 1 process 4 9", "gpu 0 instance 0 destroyed")
    assert [(each.index, each.processes) for each in gpu.instances] == [(1, ((4, 9),)), (2, ())]
    assert [each.kind for each in gpu.events] == ["mig_config"] * 2
    assert gpu.mig
    again = changed(divided, "gpu 0 instance 1 process 4 9", "gpu 0 instance 1 process 4 ended")
    assert again.instances == changed(divided).instances
    assert changed(divided, "gpu 0 instances none").instances == ()
    assert changed(divided, "gpu 0 mig off").instances == ()
    assert changed(divided, "gpu 0 mig pending off", "gpu 0 reset").instances == ()
    event = changed(divided, "gpu 0 xid 13 instance 2").events[-1]
    assert (event.data, event.gi, event.ci) == (13, 8, 0)


def test_a_process_that_grows_is_still_one_process():
    changed = changes.parse("gpu 0 process 4 9")(changes.parse("gpu 0 process 4 2")(STATE))
    assert changed.gpu(0).processes == ((4, 9),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "isn't a change"),
        ("gpu 1 explode", "isn't a change"),
        ("gpu 1 process 4242", "isn't a change"),
        ("gpu 9 lost", "there is no GPU"),
        ("gpu GPU-nope lost", "there is no GPU"),
        ("gpu 1 process 12 ended", "no process 12"),
        ("gpu 1 process x 5", "must be a whole number"),
        ("gpu 1 use 101", "from 0 to 100"),
        ("gpu 1 mode fast", "one of default"),
        ("gpu 1 mig maybe", "on, off"),
        ("gpu 2 mig on", "has no MIG"),
        ("gpu 2 mig pending on", "has no MIG"),
        ("gpu 2 instances 1g.5gb", "has no MIG"),
        ("gpu 0 instances 9g.5gb", "isn't a MIG profile"),
        ("gpu 0 instances 1g.5gb x8", "no room"),
        ("gpu 0 instance 0 destroyed", "has no MIG instance 0"),
        ("gpu 0 instance x destroyed", "must be a whole number"),
        ("gpu 0 instance 0 process 1 1", "has no MIG instance 0"),
        ("gpu 0 xid many", "must be a whole number"),
        ("gpu 0 xid 13 instance 0", "has no MIG instance 0"),
        ("gpu 2 remap pending", "remaps no rows"),
        ("gpu 0 remap done", "pending, failed, none"),
        ("gpu 0 clocks fast", "free, power"),
        ("gpu 0 recovery pray", "one of none, gpu_reset"),
        ("gpu 0 fabric torn", "one of not_started"),
        ("gpu 1 function rm 5", "NVML function"),
        ("driver lazy", "gone, mismatch"),
    ],
)
def test_a_change_that_cannot_be_is_a_sentence(text, words):
    with pytest.raises(ValueError, match=words):
        changes.parse(text)(STATE)


def test_the_explanation_names_every_change():
    for form, _, _ in changes.CHANGES:
        assert form in changes.explanation()


@pytest.mark.parametrize(
    ("named", "gpus", "meant"),
    [
        ([], None, [("A100-40GB", 4)]),
        ([], 0, [("A100-40GB", 0)]),
        ([("T4", None)], None, [("T4", 4)]),
        ([("T4", None)], 2, [("T4", 2)]),
        ([("T4", 3)], None, [("T4", 3)]),
        ([("T4", 2), ("A10", 2)], 4, [("T4", 2), ("A10", 2)]),
        ([("T4", None), ("A10", 2)], None, [("T4", 1), ("A10", 2)]),
    ],
)
def test_models_and_number_of_gpus_go_together(named, gpus, meant):
    assert command.models(named, gpus) == meant


def test_models_and_number_of_gpus_may_not_contradict_each_other():
    with pytest.raises(ValueError, match="--gpus says 5, but the models make 4"):
        command.models([("T4", 2), ("A10", 2)], 5)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("a100", "A100-40GB"),
        ("V100", "V100-16GB"),
        ("t4", "T4"),
        ("NVIDIA L4", "L4"),
        ("h100", "H100"),
        ("A100-80GB", "A100-80GB"),
    ],
)
def test_a_model_is_known_by_its_short_name_too(name, known):
    assert command.model_called(name) == known


@pytest.mark.parametrize(
    ("text", "profiles"),
    [
        ("1: 1g.5gb x2", [[], ["1g.5gb", "1g.5gb"]]),
        ("gpu 1:3g.20gb,1g.5gb", [[], ["3g.20gb", "1g.5gb"]]),
        ("all: 7g.40gb", [["7g.40gb"], ["7g.40gb"]]),
        ("0:none", [[], []]),
    ],
)
def test_gpus_are_divided_at_the_start(text, profiles):
    state = command.divided(describe([("A100-40GB", 2)]), *command._mig(text))
    assert [[each.profile for each in gpu.instances] for gpu in state.gpus] == profiles
    assert [gpu.mig for gpu in state.gpus].count(True) == (2 if "all" in text else 1)


def test_an_unknown_model_is_answered_with_those_that_are_known():
    with pytest.raises(argparse.ArgumentTypeError, match="'A1' isn't known; one of A10, A30"):
        command.model_called("A1")


def test_the_announcement_says_what_is_simulated():
    assert command.announcement(STATE) == (
        "gpuspawner: simulating 2 \N{MULTIPLICATION SIGN} NVIDIA A100-SXM4-40GB and "
        "2 \N{MULTIPLICATION SIGN} Tesla T4, driver 570.133.20; nothing here is a real GPU"
    )
    assert "a host without GPU" in command.announcement(describe([]))


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ([], 2, "COMMAND is missing"),
        (["--"], 2, "COMMAND is missing"),
        (["--gpus", "-1", "--", "true"], 2, "'-1' isn't a whole number from 0 to 64"),
        (["--gpus", "65", "--", "true"], 2, "'65' isn't a whole number from 0 to 64"),
        (["--gpus", "x", "--", "true"], 2, "'x' isn't a whole number"),
        (["--model", "A100:x", "--", "true"], 2, "'x' isn't a whole number"),
        (["--model", "nope", "--", "true"], 2, "'nope' isn't known; one of A10,"),
        (["--driver", "new", "--", "true"], 2, "a version such as"),
        (["--preset", "cray", "--", "true"], 2, "invalid choice: 'cray'"),
        (["--preset", "l40s", "--gpus", "2", "--", "true"], 2, "--preset says all of it"),
        (["--preset", "l40s", "--model", "T4", "--", "true"], 2, "--preset says all of it"),
        (["--preset", "l40s", "--topology", "pcie", "--", "true"], 2, "--preset says all of it"),
        (["--preset", "l40s", "--driver", "570.1", "--", "true"], 2, "--preset says all of it"),
        (["--preset", "l40s", "--mig", "0: none", "--", "true"], 2, "NVIDIA L40S has no MIG"),
        (["--mig", "1g.5gb", "--", "true"], 2, "isn't a GPU's index, or all, and MIG profiles"),
        (["--mig", "0: big", "--", "true"], 2, "'big' isn't a MIG profile such as"),
        (["--mig", "0: 1g.10gb x9", "--", "true"], 2, "no room for one more 1g.10gb"),
        (["--mig", "7: 1g.5gb", "--", "true"], 2, "there is no GPU 7"),
        (["--model", "T4", "--mig", "all: none", "--", "true"], 2, "Tesla T4 has no MIG"),
        (["--change", "explode"], 2, "gpu GPU process PID MIB"),
        (["--change", "driver gone", "--", "true"], 2, "leave COMMAND out"),
        (["--join"], 2, "COMMAND is missing"),
        (["--", "no-such-program"], 127, "no-such-program: command not found"),
    ],
)
def test_arguments_that_make_no_sense_are_answered_with_a_sentence(words, status, said):
    done = simulate(*words)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.engine
def test_command_has_what_it_needs_and_its_status_is_passed_on(session):
    begun = session(signals=0)
    assert begun.environment["DOCKER_HOST"] == f"unix://{begun.directory}/docker.sock"
    assert begun.environment["GPUSPAWNER_HUB_IP"].count(".") == 3
    assert begun.environment["LD_LIBRARY_PATH"].split(":")[0] == f"{begun.directory}/nvml"
    assert begun.environment["PATH"].split(":")[0] == f"{begun.directory}/nvml"
    assert begun.end() == (5, "got in all 0\n")
    assert left_by(begun.directory) == []


@pytest.mark.engine
def test_the_host_can_be_changed_from_another_shell(session):
    begun = session(signals=1)
    variables = {"GPUSPAWNER_SIMULATED_STATE": begun.environment["GPUSPAWNER_SIMULATED_STATE"]}
    done = simulate("--change", "gpu 0 use 42", "--change", "gpu 0 process 77 5", **variables)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(["nvidia-smi"], env=begun.environment, capture_output=True, text=True)
    assert "42%" in shown.stdout
    assert "77" in shown.stdout
    wrong = simulate("--change", "gpu 9 lost", **variables)
    assert (wrong.returncode, "there is no GPU" in wrong.stderr) == (2, True)
    begun.process.terminate()
    begun.end()


@pytest.mark.engine
def test_a_command_in_another_shell_joins_the_host_that_runs(session, monkeypatch):
    begun = session(signals=1)
    variables = {"GPUSPAWNER_SIMULATED_STATE": begun.environment["GPUSPAWNER_SIMULATED_STATE"]}
    words = ["sh", "-c", "echo $DOCKER_HOST; nvidia-smi -L | wc -l; exit 7"]
    done = simulate("--join", "--", *words, **variables)
    assert (done.returncode, done.stdout) == (7, f"unix://{begun.directory}/docker.sock\n1\n")
    # Who hasn't joined is told how.
    monkeypatch.delenv("GPUSPAWNER_SIMULATED_STATE", raising=False)
    words = "sudo gpuspawner simulate --join -- gpuspawner gpus"
    assert running_host.join_hint("gpus").endswith(words)
    monkeypatch.setenv("GPUSPAWNER_SIMULATED_STATE", variables["GPUSPAWNER_SIMULATED_STATE"])
    assert running_host.join_hint("gpus") == ""
    begun.process.terminate()
    begun.end()


@pytest.mark.engine
def test_ctrl_c_ends_command_in_its_own_time_with_the_engine_still_up(session):
    begun = session(signals=1, terminal=True, seconds=1)
    os.kill(begun.process.pid, signal.SIGSTOP)
    os.write(begun.terminal, b"\x03")
    assert begun.process.stdout.readline() == "got SIGINT\n"
    # Only now do we hear of it, and must not pass on what COMMAND has got from the terminal.
    os.kill(begun.process.pid, signal.SIGCONT)
    assert begun.end() == (5, "got in all 1\n")
    assert left_by(begun.directory) == []


@pytest.mark.engine
def test_ctrl_c_again_kills_command(session):
    begun = session(signals=1000, terminal=True)
    end = time.monotonic() + 60
    while begun.process.poll() is None and time.monotonic() < end:
        os.write(begun.terminal, b"\x03")
        time.sleep(0.3)
    status, said = begun.end()
    assert status == 128 + signal.SIGKILL
    assert "got SIGINT" in said
    assert "got in all" not in said
    assert left_by(begun.directory) == []


@pytest.mark.engine
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_us_alone_is_passed_on_to_command(session, number):
    begun = session(signals=1)
    begun.process.send_signal(number)
    assert begun.end() == (5, f"got {number.name}\ngot in all 1\n")
    assert left_by(begun.directory) == []


@pytest.mark.engine
def test_killed_it_leaves_nothing_but_for_a_moment(session):
    begun = session(signals=1)
    keeper = begun.keeper()
    begun.process.kill()
    _, said = begun.end()  # returns when COMMAND, which has its output, has ended too
    assert "got SIGTERM" in said
    until(lambda: ended(keeper), "everything was taken down")
    assert left_by(begun.directory) == []
