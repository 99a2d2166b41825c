"""Functions of the job scripts that need no Slurm."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import wait_until
from xlr.shipped import shipped

# In place of Ray: writes down its argument, makes the folder and waits.
RAY = 'echo "$1" >"$0"; mkdir "${1#--temp-dir=}"; exec sleep 600'


def function(name: str) -> str:
    """The text of a function in lib.sh."""
    found = re.search(rf"^{name}\(\) {{$.*?^}}$", shipped("slurm", "lib.sh").read_text(encoding="utf-8"), re.M | re.S)
    assert found
    return found[0]


def test_ray_runs_in_a_new_private_folder_which_is_removed_with_those_of_killed_jobs(tmp_path: Path) -> None:
    job = f"9{os.getpid()}"  # Slurm's numbers have at most eight digits
    dead, own, link = (Path(f"/tmp/xlr-{job}{name}") for name in ("-dead", "-own", ""))
    dead.mkdir()
    (dead / ".xlr-lock").touch()
    own.mkdir()  # a folder of the user with a similar name
    for folder in (dead, own):
        os.utime(folder, (0, 0))
    link.symlink_to(tmp_path)  # somebody expected the folder's name
    note = tmp_path / "note"
    script = f"set +e; {function('ray_node')}; ray_node bash -c '{RAY}' {note}"
    process = subprocess.Popen(["bash", "-c", script], env=os.environ | {"SLURM_JOB_ID": job})
    try:
        option = wait_until(lambda: note.is_file() and note.read_text().strip(), "the start of Ray", 30)
        assert re.fullmatch(rf"--temp-dir=/tmp/xlr-{job}-\w{{6}}/ray", option)
        folder = Path(option.partition("=")[2]).parent
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not dead.exists()
        locked = subprocess.run(["flock", "--nonblock", folder / ".xlr-lock", "true"], check=False)
        assert locked.returncode, "another job would remove the folder"
        process.send_signal(signal.SIGUSR2)
        assert process.wait(timeout=30) == 0
        assert not folder.exists()
        assert list(tmp_path.iterdir()) == [note], "the link was followed"
    finally:
        process.kill()
        link.unlink()
        own.rmdir()


@pytest.mark.parametrize("code", [137, 75])
def test_ranks_start_again_as_long_as_their_micro_batches_get_smaller(code: int, tmp_path: Path) -> None:
    """The step fails three times: twice with a smaller size, then for another reason. 75 is a request to end."""
    (tmp_path / "run").mkdir()
    script = f"""
    set -euo pipefail
    {function("in_ranks")}
    run={tmp_path}/run port=100 nodes=(node) starts=0
    address() {{ echo 127.0.0.1; }}
    step() {{
      starts=$((starts + 1))
      echo "start $starts at port $MASTER_PORT: ${{*: -1}}"
      [ "$starts" = 3 ] || echo "$starts" >"$run/micro_batches.json"
      code={code}
    }}
    in_ranks xlr train
    echo "code $code"
    """
    printed = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    again = "memory ran out; the ranks start again with smaller micro-batches"
    starts = ["start 1 at port 102: train", again, "start 2 at port 103: train", again, "start 3 at port 102: train"]
    assert printed.splitlines() == [*(starts if code == 137 else starts[:1]), f"code {code}"]


@pytest.mark.parametrize(("setup", "expected"), [("", "1"), ("export HF_HUB_OFFLINE=0", "0")])
def test_jobs_do_not_ask_the_hub_unless_setup_says_so(tmp_path: Path, setup: str, expected: str) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "environment.sh").write_text(f"container=() python={sys.executable}\n{setup}\n")
    script = f'scontrol() {{ echo node; }}; run={tmp_path}; source "$0"; bash -c \'echo "$HF_HUB_OFFLINE"\''
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node"}
    printed = subprocess.check_output(
        ["bash", "-c", script, shipped("slurm", "lib.sh")], env=environment | job, text=True
    )
    assert printed.strip() == expected
