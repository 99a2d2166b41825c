"""Starts a real Slurm cluster on this machine: Debian's slurmctld and munged, and nodes in Linux namespaces.

Each node has its own network, host name, processes, /dev/shm and /tmp, and shares the rest of the file system, as
cluster nodes share home directories. It needs no systemd, writes nothing under /etc and uses no fixed address. `stop`
ends everything.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip", "unshare", "nsenter")
NODES = ("n1", "n2")
CPUS = 4  # per node, as configured; the machine may have fewer
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FREEZER = Path("/sys/fs/cgroup/freezer")
_BRIDGE = f"xlr{os.getpid()}"  # an interface's name has at most 15 characters

_SLURM_CONF = """\
ClusterName=test
SlurmctldHost=ctl({network}.254)
CommunicationParameters=NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its first run has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# The configured resources count, not those of this machine.
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
SlurmdTimeout=10
MessageTimeout=60
BatchStartTimeout=60
UnkillableStepTimeout=120
MinJobAge=86400
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""

_CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainRAMSpace=no
ConstrainDevices=no
"""

# Process 1 of a node: sets up its namespaces, then runs slurmd.
_NODE = """\
set -eu
name=$1 address=$2 gateway=$3 folder=$4 own=$5 freezer=$6
shift 6
mount -t proc proc /proc
hostname "$name"
mount --bind "$folder/hosts" /etc/hosts
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
for shared in "$@"; do mkdir -p "$own$shared"; mount --rbind "$shared" "$own$shared"; done
mount --rbind "$own/tmp" /tmp
[ -z "$freezer" ] || mount --bind "$freezer" /sys/fs/cgroup/freezer
until ip link show eth0 >/dev/null 2>&1; do sleep 0.02; done
ip link set lo up
ip addr add "$address/24" dev eth0
ip link set eth0 up
# No host has this gateway address, but programs find their own address through the default route.
ip route add default via "$gateway"
slurmd -D -N "$name" -f "$folder/slurm.conf" &
wait $!
"""


def lacking() -> str | None:
    """The reason why no cluster can be started here, or None."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=_PATH)]
    if absent:
        return f"no {', '.join(absent)}: apt-get install munge slurmctld slurmd slurm-client iproute2"
    if os.geteuid():
        return "a Slurm cluster of namespaces needs root"
    probe = subprocess.run(["unshare", "--net", "--mount", "--pid", "--fork", "true"], capture_output=True)
    return None if probe.returncode == 0 else f"no namespaces can be made: {probe.stderr.decode().strip()}"


class SlurmCluster:
    """A running cluster: munged, slurmctld and one slurmd per node."""

    def __init__(self, folder: Path, shared: Sequence[Path]):
        """Start the cluster.

        Args:
            folder: folder for configuration, state, logs and sockets. Its path must be short, because it holds sockets.
            shared: folders that all nodes see, even below /tmp, of which each node has its own.
        """
        self._folder = folder
        self._shared = [path for path in (folder, *shared) if path.is_relative_to("/tmp")]
        self._network = f"10.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        self._addresses = {name: f"{self._network}.{number}" for number, name in enumerate(NODES, 1)}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._freezer: Path | None = None
        if (_FREEZER / "cgroup.procs").exists():
            self._freezer = _FREEZER / _BRIDGE
            self._freezer.mkdir()
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._configure()
        _run("ip", "link", "add", _BRIDGE, "type", "bridge", "forward_delay", "0")
        _run("ip", "addr", "add", f"{self._network}.254/24", "dev", _BRIDGE)
        _run("ip", "link", "set", _BRIDGE, "up")
        socket, key = folder / "munge.socket", folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        own = [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket}", *own)
        wait_until(socket.exists, "munged's socket", 20)
        as_ctl = f"hostname ctl; mount --bind {folder}/hosts /etc/hosts; exec slurmctld -D"
        self._start("slurmctld", "unshare", "--uts", "--mount", "sh", "-c", as_ctl)
        for name in NODES:
            self.boot(name)
        self.wait_until_up()

    def _configure(self) -> None:
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={address} CPUs={CPUS} RealMemory=16000 State=UNKNOWN"
            for name, address in self._addresses.items()
        )
        # linuxproc misses daemons that left their parent process.
        proctrack = "cgroup" if self._freezer else "linuxproc"
        values = {"network": self._network, "folder": self._folder, "proctrack": proctrack, "nodes": nodes}
        (self._folder / "slurm.conf").write_text(_SLURM_CONF.format(**values))
        (self._folder / "cgroup.conf").write_text(_CGROUP_CONF)
        addresses = {"ctl": f"{self._network}.254", **self._addresses}
        hosts = "".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **addresses}.items())
        (self._folder / "hosts").write_text(hosts)
        (self._folder / "state").mkdir(mode=0o700)

    def _start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": _PATH, "HOME": "/root", "LANG": "C.UTF-8", **self.environment}
        with (self._folder / f"{name}.out").open("ab") as output:
            self._processes[name] = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self._processes[name]

    def boot(self, name: str) -> None:
        """Start a node."""
        own = self._folder / "nodes" / name
        (self._folder / "spool" / name).mkdir(parents=True, exist_ok=True)
        shutil.rmtree(own, ignore_errors=True)
        (own / "tmp").mkdir(parents=True)
        (own / "tmp").chmod(0o1777)
        namespaces = ["--net", "--uts", "--mount", "--pid", "--ipc", "--fork", "--kill-child=KILL"]
        arguments = [name, self._addresses[name], f"{self._network}.253", str(self._folder), str(own)]
        arguments += [str(self._freezer or ""), *map(str, self._shared)]
        node = self._start(name, "unshare", *namespaces, "bash", "-c", _NODE, "node", *arguments)
        ours = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{node.pid}/ns/net") != ours, f"{name}'s namespace", 10)
        end = f"{_BRIDGE}{name}"
        _run("ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", str(node.pid))
        _run("ip", "link", "set", end, "master", _BRIDGE, "up")

    def crash(self, name: str) -> None:
        """Kill all processes of a node at once."""
        init = self._init(name)
        node = self._processes.pop(name)
        node.kill()
        node.wait()
        wait_until(lambda: not Path(f"/proc/{init}").exists(), f"the end of {name}'s processes", 30)
        # Usually the interface disappears with the node, but open connections can keep the namespace for minutes.
        subprocess.run(["ip", "link", "del", f"{_BRIDGE}{name}"], env={"PATH": _PATH}, capture_output=True)

    def wait_until_up(self) -> None:
        """Wait until every node accepts jobs."""

        def up() -> bool:
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} ended: {(self._folder / f'{name}.out').read_text()[-1000:]}"
            command = ["sinfo", "--noheader", "--Node", "--format=%T"]
            found = subprocess.run(command, env=os.environ | self.environment, capture_output=True, text=True)
            return found.stdout.split().count("idle") == len(NODES)

        wait_until(up, f"idle nodes (logs in {self._folder})", 60, pause=0.1)

    def processes(self, name: str) -> dict[int, str]:
        """Process id on this machine -> command line, for all processes of a node except slurmd and process 1."""
        init = self._init(name)
        namespace = os.readlink(f"/proc/{init}/ns/pid")
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if process.name != init and os.readlink(process / "ns/pid") == namespace:
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    found[int(process.name)] = command
        return {pid: command for pid, command in found.items() if command and not command.startswith("slurmd ")}

    def _init(self, name: str) -> str:
        """The process id on this machine of a node's process 1."""
        node = self._processes[name].pid
        return Path(f"/proc/{node}/task/{node}/children").read_text().strip()

    def folder_of(self, name: str, path: str) -> Path:
        """The path on this machine of a folder below a node's own /tmp."""
        return self._folder / "nodes" / name / path.lstrip("/")

    def stop(self) -> None:
        """End every process that was started and remove the network."""
        for name in NODES:
            if name in self._processes:
                self.crash(name)
        for process in reversed(self._processes.values()):
            process.terminate()
            process.wait(timeout=30)
        _run("ip", "link", "del", _BRIDGE)
        if self._freezer:
            for group in sorted(self._freezer.rglob("*/"), reverse=True):
                group.rmdir()
            self._freezer.rmdir()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, env=os.environ | {"PATH": _PATH})


@contextlib.contextmanager
def running(folder: Path, shared: Sequence[Path]) -> Iterator[SlurmCluster]:
    """Run a cluster while the block runs. This process's Slurm commands use it."""
    cluster = SlurmCluster(folder, [Path(sys.prefix), Path(__file__).parents[1], *shared])
    os.environ |= cluster.environment
    try:
        yield cluster
    finally:
        os.environ.pop("SLURM_CONF")
        cluster.stop()
