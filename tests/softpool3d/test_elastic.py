"""torchrun with nodes that come and go: they are two torchruns on this machine."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from shared import family
from watched import CLIPS, EPOCHS, SETTINGS, assert_each_clip_comes_once, batches, environment, last_start, until

from softpool3d.runs.checkpoint import load_state

TORCHRUN = "torchrun --nnodes 1:2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id elastic"


def test_an_update_keeps_its_clips_while_nodes_come_and_go(tmp_path):
    """One node, then two, and one again after the other was killed: each update has the clips of train.global_batch,
    and each clip comes once in every epoch."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    noted, log = tmp_path / "noted", tmp_path / "log"
    # Where torchrun shares its store, a node that comes later is not told where it is (torch 2.14).
    environ, nodes = {**environment(noted), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}, []

    def start(is_host):
        command = [*TORCHRUN.split(), "--rdzv-endpoint", endpoint]
        command += ["--rdzv-conf", f"is_host={is_host},last_call_timeout=1", "--no-python", "softpool3d", "train"]
        command += [*SETTINGS, "checkpoint.every_minutes=1e-9", f"output={tmp_path}", "name=run"]
        with log.open("a") as output:
            node = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        nodes.append(node)
        return node

    def trained_by(processes, updates):
        until(lambda: sum(b["processes"] == processes for b in last_start(noted)) >= updates * processes, log)

    def kill(node):
        """A torchrun, and then the process that it started, which would go on without it."""
        for pid in family(node.pid):
            os.kill(pid, signal.SIGKILL)
        node.wait()

    try:
        (noted / "slow").touch()
        first = start(is_host=True)
        trained_by(1, 3)
        second = start(is_host=False)
        trained_by(2, 3)
        kill(second)
        trained_by(1, 3)
        (noted / "slow").unlink()
        assert first.wait(120) == 0, log.read_text()
    finally:
        for node in nodes:
            if node.poll() is None:
                kill(node)
    assert len({batch["start"] for batch in batches(noted)}) == 3
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["noted", "run"]
    assert_each_clip_comes_once(noted, EPOCHS)


def test_a_process_whose_torchrun_is_killed_before_they_met_ends(tmp_path):
    """It would ask for torchrun's store until the timeout."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = tmp_path / "process.py"
    process.write_text(
        "from datetime import timedelta\nimport torch\nfrom softpool3d.runtime.processes import join\n"
        "print('meeting', flush=True)\njoin(torch.device('cpu'), timedelta(minutes=5))\n"
    )
    torchrun = "import subprocess, sys; subprocess.run(sys.argv[1:])"
    elastic = {"TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_RESTART_COUNT": "0", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    elastic |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, "-c", torchrun, sys.executable, process]
        parent = subprocess.Popen(command, env=os.environ | elastic, stdout=output, stderr=output)
        until(lambda: "meeting" in log.read_text(), log)
        child = family(parent.pid)[1]
        parent.kill()
        parent.wait()
        until(lambda: not Path(f"/proc/{child}").exists(), log)
    assert log.read_text().endswith("error: torchrun ended before its processes had met; start it again\n")


def test_a_training_whose_torchrun_is_killed_saves_and_ends(tmp_path):
    """It would keep a GPU for as long as it trains, and nobody would know."""
    noted, log = tmp_path / "noted", tmp_path / "log"
    environ = environment(noted)
    command = ["torchrun", "--standalone", "--nproc-per-node", "1", "--no-python", "softpool3d", "train"]
    command += [*SETTINGS, "--resume", "auto", f"output={tmp_path}", "name=run"]
    (noted / "slow").touch()
    with log.open("w") as output:
        torchrun = subprocess.Popen(command, env=environ, stdout=output, stderr=output)
        until(lambda: len(batches(noted)) >= 3, log)
        training = family(torchrun.pid)[1]
        torchrun.kill()
        torchrun.wait()
        until(lambda: not Path(f"/proc/{training}").exists(), log)
    assert f"stopped; go on with: softpool3d train --resume {tmp_path / 'run'}" in log.read_text()
    assert 0 < load_state(tmp_path / "run" / "last" / "checkpoint.pt")["clips"] < CLIPS
