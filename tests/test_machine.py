"""Facts about the machine, and what follows from them before torch is imported."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pugdft import machine

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RANK")


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(("cores", "others", "sleeps"), [
    (2, [0, 1, 2, 1, 1], False), (2, [1, 1, 2, 1, 1], True), (64, [3] * 5, False), (64, [16] * 5, True),
])  # fmt: skip
def test_waiting_threads_sleep_where_others_always_keep_a_quarter_of_the_cores(
    cores: int, others: list[int], sleeps: bool, variables: pytest.MonkeyPatch
) -> None:
    moments = iter(others)
    variables.setattr(machine, "_others_running", lambda: next(moments))
    variables.setattr(machine, "usable_cores", lambda: cores)
    assert machine.share_cores() is sleeps
    assert os.environ.get("OMP_WAIT_POLICY") == ("PASSIVE" if sleeps else None)
    assert os.environ.get("GOMP_SPINCOUNT") == ("0" if sleeps else None)


@pytest.mark.parametrize("name", VARIABLES)
def test_what_somebody_has_set_stays(name: str, variables: pytest.MonkeyPatch) -> None:
    variables.setattr(machine, "_others_running", lambda: 100)
    variables.setenv(name, "1")
    assert not machine.share_cores()
    assert os.environ[name] == "1"


@pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="only Linux tells")
def test_a_busy_program_is_seen() -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.2)
        assert max(machine._others_running() for _ in range(20)) >= 1
    finally:
        busy.kill()
        busy.wait()
