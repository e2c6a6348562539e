"""Commands under torchrun, as users start them."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from known import read_run

from w2skd.records.rows import EventRow, StepRow

REPOSITORY = Path(__file__).resolve().parents[2]


def torchrun(*arguments: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "w2skd",
        *arguments,
    ]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}


@pytest.mark.slow
def test_under_torchrun_an_error_is_printed_once(tmp_path: Path) -> None:
    command = torchrun("distill", "-r", "cifar10_cpu", "--baseline", "-o", "out", "--set", "data.root=nowhere")
    ended = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 1
    assert ended.stderr.count("w2skd:") == 1, ended.stderr
    assert "nowhere" in ended.stderr


SLOW_UNTIL_TOLD = """
import time
from pathlib import Path

from w2skd.models.small_cnn import SmallCnn


class Slow(SmallCnn):
    def forward(self, images):
        if not Path("go").exists():
            time.sleep(0.2)
        return super().forward(images)


def slow(num_classes):
    return Slow((8, 8, 8), num_classes)
"""


@pytest.mark.slow
def test_under_torchrun_a_sigterm_stops_and_the_same_command_resumes(tmp_path: Path) -> None:
    """However slow the machine is: the first start cannot end before the signal, and nothing depends on a time."""
    lengths = ("data.train_examples=64", "data.eval_examples=33", "data.image_size=16")
    often = ("train.batch_size=8", "train.steps=200", "train.log_every=4", "train.validate_every=100step")
    (tmp_path / "models.py").write_text(SLOW_UNTIL_TOLD)
    changes = [word for change in (*lengths, *often, "student.model=plugin:slow") for word in ("--set", change)]
    start_command = ("distill", "-r", "demo_smoke", "--baseline", "-q", "--json", "-o", "out", "--plugin", "models.py")
    command = torchrun(*start_command, *changes)
    path = tmp_path / "out" / "baseline" / "seed0"
    start = partial(subprocess.Popen, command, cwd=tmp_path, env=ENVIRONMENT, text=True)
    launched = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").stat().st_size:
            assert launched.poll() is None, launched.communicate()
            time.sleep(0.02)
        launched.send_signal(signal.SIGTERM)
        output, printed = launched.communicate()
    finally:
        launched.kill()
    assert launched.returncode != 0
    assert output == ""
    assert printed.count("w2skd: stopped by SIGTERM at step") == 1, printed
    status = read_run(path).status
    assert status["state"] == "stopped"
    assert 0 < status["step"] < 200
    (tmp_path / "go").touch()
    launched = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, printed = launched.communicate()
    assert launched.returncode == 0, printed
    assert json.loads(output)
    assert read_run(path).status["state"] == "finished"
    assert [row.step for row in read_run(path).rows if isinstance(row, StepRow)] == list(range(4, 201, 4))
    happened = [(row.step, row.name) for row in read_run(path).rows if isinstance(row, EventRow)]
    assert happened == [(status["step"], "resumed"), (200, "finished")]
    assert "Warning" not in printed, printed
