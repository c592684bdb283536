"""What a process tree costs, as the kernel counts it, and whose port it is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tristage.client._wire import Address
from tristage.errors import InputError
from tristage.loadtest._process import Processes, Watch, find_server, of_pid

# a parent that waits for a child which keeps 50 MB and works until its own clock shows 0.3 s; then both wait
TREE = """
import subprocess, sys
child = '''
import time
kept = bytearray(50_000_000)
for at in range(0, len(kept), 4096): kept[at] = 1
while time.process_time() < 0.3: pass
print("ready", flush=True)
input()
'''
subprocess.run([sys.executable, "-c", child])
"""


def test_the_whole_tree_is_counted():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", TREE], text=True, **pipes) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        processes = of_pid(parent.pid)
        with Watch(processes) as memory:
            pass
        usage = processes.usage()
        shared_once = processes.shared_once()
        alone = sum(map(int, Path(f"/proc/{parent.pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
        parent.communicate("\n")
    assert usage is not None
    assert usage.cpu_s >= 0.28 + alone / os.sysconf("SC_CLK_TCK")  # ticks of 10 ms
    assert usage.resident >= 50_000_000
    assert memory.peak >= 50_000_000
    assert shared_once is not None
    assert 50_000_000 <= shared_once <= usage.resident
    assert processes.usage() is None  # gone


def test_a_process_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="--server-pid"):
        of_pid(2**22 + 1)


def test_what_is_unknown_costs_nothing_and_says_why():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = find_server(Address("http", "127.0.0.1", listener.getsockname()[1]))
    assert ours.pid is None
    assert "unknown" in ours.words
    assert "listens on port" in ours.words  # it is this test, and no tritonserver
    elsewhere = find_server(Address("http", "192.0.2.1", 8000))
    assert elsewhere.words == "unknown: 192.0.2.1 is another machine"
    nobody = Processes(None, "unknown")
    assert (nobody.usage(), nobody.shared_once(), nobody.cores(), nobody.repository()) == (None, None, None, None)
    with Watch(nobody) as memory:
        pass
    assert memory.peak == 0
