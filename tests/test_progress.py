"""Progress in a terminal and elsewhere, and TensorBoard scalars."""

import io
import subprocess
import sys

import pytest
from rich.console import Console

from outeropt import progress
from outeropt.progress import Progress, scalars


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress, "_now", lambda: now[0])
    return now


def plain():
    return Console(file=io.StringIO(), force_terminal=False, width=60)


def test_short_work_is_silent(clock):
    console = plain()
    with Progress("trials", console=console) as shown:
        bar = shown.task("Digits", total=10)
        for _ in range(10):
            clock[0] += 0.19
            bar.advance()
    assert console.file.getvalue() == ""


def test_a_pipe_gets_a_line_now_and_then(clock):
    console = plain()
    with Progress("trials", console=console) as shown:
        bar = shown.task("Digits [adam]", total=100)
        for i in range(25):
            clock[0] += 1.0
            bar.advance(4, note=f"loss {i}")
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "Digits [adam]: 40/100, 4 trials/s, 10 s so far, 15 s left, loss 9",
        "Digits [adam]: 80/100, 4 trials/s, 20 s so far, 5 s left, loss 19",
        "Digits [adam]: 100/100, 4 trials/s, 25 s so far, loss 24",
    ]


def test_work_done_before_does_not_count_for_the_rate(clock):
    console = plain()
    with Progress("trials", console=console) as shown:
        bar = shown.task("Digits", total=1000, done=900)
        clock[0] += 600.0
        bar.advance(10)
    first = console.file.getvalue().splitlines()[0]
    assert first == "Digits: 910/1000, 60 s/trial, 10 min 00 s so far, 1 h 30 min left"


def test_what_compiled_first_does_not_count_for_the_rate(clock):
    console = plain()
    with Progress("outer steps", console=console) as shown:
        bar = shown.task("Digits", total=100, done=50, compiles=True)
        clock[0] += 30.0
        bar.advance(1)
        for _ in range(4):
            clock[0] += 5.0
            bar.advance(10)
        clock[0] += 4.5
        bar.advance(9)
    assert console.file.getvalue().splitlines() == [
        "Digits: 51/100, 30 s so far",
        "Digits: 71/100, 2 outer steps/s, 40 s so far, 14 s left",
        "Digits: 91/100, 2 outer steps/s, 50 s so far, 4 s left",
        "Digits: 100/100, 2 outer steps/s, 54 s so far",
    ]


def test_shares_add_up_and_large_counts_stay_whole(clock):
    console = plain()
    with Progress("steps", console=console) as shown:
        bar = shown.task("Digits", total=3_000_000)
        for _ in range(3):
            clock[0] += 10.0
            bar.advance(1_000_000 - 0.1)
            bar.advance(0.1)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("Digits: 999999/3000000, 100000 steps/s")
    assert lines[-1].startswith("Digits: 3000000/3000000")


def test_unknown_totals(clock):
    console = plain()
    with Progress("steps", console=console) as shown:
        bar = shown.task("search", total=None)
        clock[0] += 20.0
        bar.advance(1000)
    assert console.file.getvalue().splitlines()[0] == "search: 1000, 50 steps/s, 20 s so far"


def test_quiet_is_quiet(clock):
    for console in (plain(), Console(file=io.StringIO(), force_terminal=True)):
        with Progress("steps", quiet=True, console=console) as shown:
            bar = shown.task("search", total=10)
            clock[0] += 100.0
            bar.advance(10)
        assert console.file.getvalue() == ""


def test_a_terminal_gets_a_bar_after_a_moment(monkeypatch):
    monkeypatch.setattr(progress, "SHOW_AFTER", 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress("trials", console=console) as shown:
        bar = shown.task("Digits [adam]", total=4)
        shown._timer.join()
        bar.advance(3)
        bar.advance(1, note="done")
    text = console.file.getvalue()
    assert "Digits [adam]" in text
    assert "4/4" in text
    assert "trials" in text
    assert "done" in text


def test_a_terminal_stays_clean_after_short_work():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with Progress("trials", console=console) as shown:
        shown.task("Digits", total=1).advance()
    assert console.file.getvalue() == ""


def test_errors_pass_through():
    with pytest.raises(KeyError), Progress("steps", console=plain()) as shown:
        shown.task("x", total=1)
        raise KeyError("x")


def test_scalars_are_written(tmp_path):
    with scalars(tmp_path / "logs") as log:
        log.log(3, {"meta/loss": 0.25, "rate": 1})
        log.flush()
    (file,) = (tmp_path / "logs").iterdir()
    data = file.read_bytes()
    assert b"meta/loss" in data
    assert b"rate" in data


def test_scalars_of_a_killed_process_are_hidden_from_a_step_on(tmp_path):
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    with scalars(tmp_path, since=7) as log:
        log.log(7, {"meta/loss": 0.5})
    (file,) = tmp_path.iterdir()
    # Records of the file: length, its checksum, the event, its checksum.
    data, events = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    (start,) = (event.step for event in events if event.session_log.status == SessionLog.START)
    assert start == 7


def test_no_jax_and_no_tensorboard_until_needed():
    code = (
        "import sys, outeropt.progress; assert 'jax' not in sys.modules and 'tensorboardX' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
