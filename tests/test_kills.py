"""Training runs that are killed again and again, at random moments, end like a run that was never stopped."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file


KILLS = 20
# One process imports the libraries; each run is a fork of it.
DRIVER = """
import os, random, signal, sys, time

from training import pretrain

recipe, folder, seed, kills = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])


def start(name):
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            pretrain.main([recipe, "--output_dir", f"{folder}/{name}"])
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid, options=0):
    found, status = os.waitpid(pid, options)
    return os.waitstatus_to_exitcode(status) if found else None


begun = time.monotonic()
assert status_of(start("whole")) == 0
length = time.monotonic() - begun
generator, runs = random.Random(seed), 0
while kills:
    runs += 1
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        pid, end = start(f"run{runs}"), time.monotonic() + generator.uniform(0, length)
        status = None
        while status is None:
            status = status_of(pid, os.WNOHANG)
            if status is None and kills and time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                status = status_of(pid)
                kills -= status == -signal.SIGKILL
            time.sleep(0.002)
    assert status == 0, open(f"{folder}/run{runs}.log").read()
"""


def what_remains(folder: Path) -> dict:
    """All that a run leaves and that does not measure time."""
    state = json.loads((folder / "trainer_state.json").read_text())
    timed = ("runtime", "per_second", "total_flos")
    logs = [{name: log[name] for name in log if not name.endswith(timed)} for log in state["log_history"]]
    results = json.loads((folder / "results.json").read_text())
    return {
        "weights": {name: weight.tolist() for name, weight in load_file(folder / "model.safetensors").items()},
        "logs": logs,
        "results": {name: value for name, value in results.items() if name not in ("tokens_per_second", "saved_in")},
        "stories": (folder / "samples.jsonl").read_text(),
        "files": sorted(str(file.relative_to(folder)) for file in folder.rglob("*")),
    }


@pytest.mark.process
@pytest.mark.experiment
def test_killed_runs_end_like_a_whole_one(recipe, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"The moments are those of seed {seed}.")
    command = [sys.executable, "-c", DRIVER, str(recipe), str(tmp_path), str(seed), str(KILLS)]
    driver = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True)
    assert driver.returncode == 0, driver.stderr
    whole, runs = what_remains(tmp_path / "whole"), sorted(tmp_path.glob("run*/results.json"))
    assert runs
    for file in runs:
        assert what_remains(file.parent) == whole, file.parent.name
