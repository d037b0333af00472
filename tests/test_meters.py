"""CPU time of this process and of others."""

import subprocess
import sys
import time

from adaptive.meters import CpuMeter

BUSY = "import time\nwhile time.process_time() < .05: pass\nprint(flush=True)\ninput()"


def test_what_another_process_took_counts_and_stays_counted_when_it_has_ended():
    others = []
    meter = CpuMeter(lambda: others)
    before, own = meter(), time.process_time()
    child = subprocess.Popen([sys.executable, "-c", BUSY], stdin=-1, stdout=-1)
    others.append(child.pid)
    child.stdout.readline()
    running = meter() - before - (time.process_time() - own)
    assert 0.049 < running < 0.5
    child.communicate(b"\n")
    ended = meter() - before - (time.process_time() - own)
    assert ended > running - 1e-3
    others.clear()
    assert meter() - before - (time.process_time() - own) > ended - 1e-3


def test_it_never_goes_back():
    meter = CpuMeter(lambda: [1 << 25])  # there is no such process
    read = [meter() for _ in range(100)]
    assert read == sorted(read)
