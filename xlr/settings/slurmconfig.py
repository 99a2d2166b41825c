"""What Slurm jobs ask for: the `slurm` section of a configuration, and the site profile, which has the same keys."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from xlr.settings.schema import Lines, Section
from xlr.stages import STAGES

# Stages of the start alone are not named: they run where the stages of the same kind of job do.
if TYPE_CHECKING:
    StageName = str
else:
    StageName = Literal[tuple(kind.name for kind in STAGES if not kind.only_start)]


_RANGE = r"^[1-9][0-9]{0,4}-[1-9][0-9]{0,4}$"
SAVING_SECONDS = 600
"""How long before its time limit a training job is told to save, unless the limit is short."""


class HardwareConfig(Section):
    """The GPUs of a cluster, for `xlr plan`. What is not set is that of the profile."""

    profile: str | None = None
    """A kind of GPU that xlr knows: h100, h100-pcie, h200, a100-80, a100-40, l40s or mi300x. here measures the machine
    that plans. null: all values are set here."""
    memory_gb: float | None = Field(None, gt=0, le=1e6)
    """Memory of a GPU, in 10^9 bytes."""
    tflops: float | None = Field(None, gt=0, le=1e6)
    """Peak rate of dense products in bfloat16, in 10^12 operations a second."""
    bandwidth_gb: float | None = Field(None, gt=0, le=1e6)
    """Bandwidth of its memory, in 10^9 bytes a second."""
    links_gb: float | None = Field(None, gt=0, le=1e6)
    """Bandwidth between the GPUs of a node in one direction, in 10^9 bytes a second."""
    network_gb: float | None = Field(None, gt=0, le=1e6)
    """Bandwidth between nodes, for each node, in 10^9 bytes a second. null takes 25, which is 200 Gbit/s."""
    price: float | None = Field(None, ge=0, le=1e9)
    """Price of an hour of one GPU."""
    currency: Annotated[str, Field(max_length=16)] | None = None
    """Currency of the price, such as EUR."""

    @model_validator(mode="after")
    def _priced(self) -> "HardwareConfig":
        if self.price is not None and self.currency is None:
            raise PydanticCustomError("currency", "has a price without a currency; set currency, for example EUR")
        return self


class JobConfig(Section):
    """What a Slurm job asks for. Settings that are null are left to the cluster."""

    nodes: Annotated[int, Field(ge=1, le=100_000)] | Annotated[str, Field(pattern=_RANGE)] | None = None
    """Number of nodes; or the fewest and the most, as in 1-4: Slurm then decides whenever the job starts or restarts. A
    training goes on with the same batches on any number. Plans count with the fewest."""
    gpus: Annotated[int, Field(ge=0, le=1024)] | Annotated[str, Field(pattern=r"^[\w.-]+:[0-9]{1,4}$")] | None = None
    """GPUs per node: a number, or type and number as in a100:8."""
    cpus: int | None = Field(None, ge=1, le=10_000)
    """CPUs per node."""
    tasks: int | None = Field(None, ge=1, le=1024)
    """Training processes per node. null starts one per GPU, or one on CPUs."""
    memory: str | None = None
    """Memory per node, in the format of sbatch --mem. "0" asks for all of it."""
    time: str | None = None
    """Time limit, in the format of sbatch --time; quote it, because YAML reads 1:30 as a number. auto takes the planned
    time with a margin, as `xlr plan --write` does. A job that reaches it saves its work and is requeued."""
    partition: str | None = None
    """Partition, or several separated by commas."""
    account: str | None = None
    """Account to charge."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that the nodes must have."""
    nice: int | None = Field(None, ge=-2_147_483_645, le=2_147_483_645)
    """Priority adjustment, as sbatch --nice: a higher value schedules the job later than your other jobs."""
    options: tuple[str, ...] | None = None
    """Further sbatch options, for example --exclusive or --signal=USR1@900."""

    @property
    def fewest_nodes(self) -> int:
        """The number of nodes that a job has at least."""
        return int(str(self.nodes or 1).partition("-")[0])

    @property
    def most_nodes(self) -> int:
        """The number of nodes that a job has at most."""
        return int(str(self.nodes or 1).rpartition("-")[2])

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.fewest_nodes > self.most_nodes:
            raise PydanticCustomError("nodes", "{nodes} nodes: put the smaller number first", {"nodes": self.nodes})
        return self


class JobKindConfig(JobConfig):
    """A kind of job: its stages, and the settings in which it differs from the other kinds."""

    stages: tuple[StageName, ...] | None = None
    """The stages of one iteration that run in one job; align runs where train does. Every stage needs a kind of job."""


class SlurmConfig(JobConfig):
    """The jobs that `xlr submit` makes of the stages. Nothing here changes a result.

    The site profile (~/.config/xlr/site.yaml) has the same keys; the run's configuration overrides it.
    """

    jobs: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], JobKindConfig] = Field({})
    """Kinds of jobs by name. By default annotate (generate, translate, score, pair, reference), train, and evaluate
    (evaluate, check, converse, benchmark, rate, judge). A kind takes the stages that it names from the other kinds; a
    kind without stages is dropped."""
    setup: Annotated[tuple[str, ...] | None, Lines.ALLOWED] = None
    """Shell lines that run first in every job, for example module load or source .../activate."""
    python: str | None = None
    """Python interpreter on the nodes. null uses the one that runs `xlr submit`."""
    container: str | None = None
    """Command prefix that runs a command in a container, for example `apptainer exec --nv image.sif`. python is then
    the interpreter inside it."""
    srun: tuple[str, ...] | None = None
    """Further srun options, for example --container-image=image.sqsh where pyxis is installed."""
    hardware: str | HardwareConfig | None = None
    """What `xlr plan` counts with: the name of a profile, such as h100, or a section. null takes h100 where GPUs are
    asked for, else the machine that plans."""
    mail: Annotated[str, Field(pattern=r"^[^\s,@-][^\s,@]*(@[^\s,@]+)?$")] | None = None
    """Address or user that Slurm mails when a job fails, and when a job ends that no other job waits for."""
    max_restarts: int | None = Field(None, ge=0, le=1_000_000)
    """How often a job may restart after its time limit, a preemption or a node failure. null allows 20 restarts."""
