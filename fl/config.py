"""The schema of server.yaml and clients.yaml.

This is the one place where a key, its default and its meaning stand.

The layout grew out of APPFL's two files (`client_configs`, `server_configs`, `clients[]`), so
their owners find their keys where they left them. Everything is strict: an unknown key or a wrong
type is refused (`fl.config_files` says how).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fl.errors import FederationError


class ConfigError(FederationError):
    """A configuration file says something that cannot be meant."""

    exit_code = 2


class Section(BaseModel):
    """One mapping in a file: strict types, no unknown key, immutable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


PositiveInt = Annotated[int, Field(gt=0)]
# What clocks and calendars can still add to; three years.
Seconds = Annotated[float, Field(gt=0, le=1e8, allow_inf_nan=False)]
Arguments = dict[str, Any]
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
FileName = Annotated[str, Field(pattern=NAME_PATTERN)]
# Far from where float32's squares are zero: an update of no norm would be clipped by nothing.
ClipNorm = Annotated[float, Field(ge=1e-6, le=1e6)]


class DPSGD(Section):
    """Example-level differential privacy at the site: DP-SGD (Abadi et al. 2016, 1607.00133)."""

    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The noise's standard deviation, as a multiple of `max_grad_norm`."""
    max_grad_norm: ClipNorm = 1.0
    """The largest Euclidean norm of one sample's gradient; larger ones are scaled down."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta that a site's `epsilon` is told for; well below 1 by its number of samples."""


class LocalDP(Section):
    """Client-level differential privacy at the site: its update is clipped and noised there."""

    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """The noise's standard deviation, as a multiple of `clip_norm`."""
    clip_norm: ClipNorm = 1.0
    """The largest Euclidean norm of the site's difference; a larger one is scaled down."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """The delta that a site's `local_epsilon` is told for."""


class TrainConfigs(Section):
    """How a client trains: the trainer's settings, the same for all unless a client says more."""

    trainer: Literal["VanillaTrainer", "FedProxTrainer", "ScaffoldTrainer"] = "VanillaTrainer"
    """Minibatch descent on the local loss: plain, with FedProx's pull or SCAFFOLD's controls."""
    mu: Annotated[float, Field(ge=0)] | None = None
    """How strongly FedProxTrainer pulls to the global model; its paper tries 0.001 to 1."""
    mode: Literal["epoch", "step", "seconds"] = "epoch"
    """Whether the local budget is counted in epochs, in minibatch steps or in seconds."""
    num_local_epochs: PositiveInt = 1
    """Epochs a round, with `mode: epoch`."""
    num_local_steps: PositiveInt = 100
    """Minibatch steps a round, with `mode: step`."""
    num_local_seconds: Seconds = 60.0
    """Seconds of training a round, with `mode: seconds`; such rounds do not repeat exactly."""
    block_margin: Seconds = 30.0
    """Seconds before its block's end at which a task stops, to send what it has trained."""
    optim: str = "SGD"
    """Name of a class in `torch.optim`."""
    optim_args: Arguments = {"lr": 0.01}
    """Its keyword arguments."""
    lr_scheduler: str | None = None
    """Name of a class in `torch.optim.lr_scheduler`; it starts anew in every round."""
    lr_scheduler_args: Arguments = {}
    """Its keyword arguments."""
    lr_scheduler_unit: Literal["step", "epoch"] = "epoch"
    """Whether it advances after every local minibatch step or epoch."""
    loss_fn: str = "CrossEntropyLoss"
    """Name of a class in `torch.nn`."""
    loss_fn_path: str | None = None
    """Path of a Python file, relative to `site_code`, with a loss to take instead."""
    loss_fn_name: str | None = None
    """The class in it: called with outputs and labels, it returns the minibatch's mean loss."""
    loss_fn_kwargs: Arguments = {}
    """Keyword arguments of the loss."""
    metric_path: str | None = None
    """Path of a Python file, relative to `site_code`, with a metric of the validation set."""
    metric_name: str | None = None
    """The function in it: of labels and outputs, as NumPy arrays of the whole set, it returns a
    number, reported as `val_metric` and `pre_val_metric`."""
    clip_grad: bool = False
    """Clip the gradient's norm before each step."""
    clip_value: Annotated[float, Field(gt=0)] = 1.0
    """The largest norm that `clip_grad` leaves."""
    clip_norm: Annotated[float, Field(gt=0)] = 2.0
    """Which norm: 2 for Euclid's."""
    dp_sgd: DPSGD | None = None
    """Clip every sample's gradient and add noise to their sum; minibatches are Poisson samples of
    `train_batch_size` on average."""
    local_dp: LocalDP | None = None
    """Clip what training added to the model, and add noise to it, before it leaves the site."""
    do_validation: bool = False
    """Evaluate on the client's validation set after training."""
    do_pre_validation: bool = False
    """Evaluate the global model on it before training, too."""
    train_batch_size: PositiveInt = 32
    """Samples a training minibatch."""
    val_batch_size: PositiveInt = 256
    """Samples a validation minibatch; it changes speed, not results."""
    train_data_shuffle: bool = True
    """Shuffle the training set every epoch, from the run's seed."""
    train_drop_last: bool = False
    """Leave out the last, smaller minibatch."""
    num_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that read samples, 0 for none. They are forked from the task's: the data set has to
    give its samples on the CPU, since a forked process cannot use CUDA."""
    device: str = "cpu"
    """A torch device: cpu, cuda, cuda:0, xpu, mps; or auto, the first of cuda, xpu, mps, cpu."""
    nproc_per_node: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of a worker's node that train together (PyTorch's DDP), as torchrun names them:
    each has a device of its own, of `device`'s kind, and a part of every minibatch."""
    nnodes: Annotated[int, Field(ge=1, le=1024)] = 1
    """Nodes of a worker's job that train together, each by `nproc_per_node` processes; for sites
    whose blocks are one worker's (docs/deploy.md)."""
    amp: Literal["bfloat16", "float16"] | None = None
    """Mixed precision: train in this type where that is safe; float16 on cuda alone."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfigs:
        if (self.loss_fn_path is None) != (self.loss_fn_name is None):
            raise ValueError("loss_fn_path and loss_fn_name need each other")
        if (self.metric_path is None) != (self.metric_name is None):
            raise ValueError("metric_path and metric_name need each other")
        if (self.trainer == "FedProxTrainer") != (self.mu is not None):
            raise ValueError("mu is what FedProxTrainer needs, and no other trainer")
        if self.trainer == "ScaffoldTrainer":
            self._require_plain_descent()
        if self.dp_sgd is not None:
            self._require_gradients_of_samples()
        if self.local_dp is not None and self.trainer == "ScaffoldTrainer":
            raise ValueError("local_dp takes no ScaffoldTrainer, whose controls would leave too")
        alone = self.nproc_per_node == self.nnodes == 1
        if not alone and (self.trainer == "ScaffoldTrainer" or self.dp_sgd):
            name = "nproc_per_node" if self.nnodes == 1 else "nnodes"
            raise ValueError(f"{name} above 1 takes neither ScaffoldTrainer nor dp_sgd")
        return self

    def _require_gradients_of_samples(self) -> None:
        """What is added to their sum, or clips it, is not what the accountant reckons with."""
        if self.trainer != "VanillaTrainer" or self.clip_grad or self.amp is not None:
            raise ValueError("dp_sgd needs VanillaTrainer, without clip_grad and without amp")

    def _require_plain_descent(self) -> None:
        """SCAFFOLD takes a step for a gradient: its controls fit no other optimizer."""
        settings = {name for name, value in self.optim_args.items() if value}
        if self.optim != "SGD" or settings - {"lr", "momentum", "foreach", "fused"}:
            raise ValueError("ScaffoldTrainer needs optim SGD with lr and momentum alone")
        if self.amp == "float16":
            raise ValueError("ScaffoldTrainer takes no amp float16, whose scaler leaves out steps")


class ModelConfigs(Section):
    """The model, by name: a file that server and sites hold in their `site_code` folders."""

    model_path: str
    """Path of the Python file, relative to `site_code`."""
    model_name: str
    """The class or function in it that returns a `torch.nn.Module`."""
    model_kwargs: Arguments = {}
    """Its keyword arguments."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 42
    """Seed of the initial weights, and of each client's shuffling with its name and the round."""


class DataConfigs(Section):
    """A data set, by name: a loader file that the site's owner put into its `site_code` folder."""

    dataset_path: str
    """Path of the Python file, relative to the site's `site_code`."""
    dataset_name: str
    """The function in it that returns the training and the validation set."""
    dataset_kwargs: Arguments = {}
    """Its keyword arguments."""


class ConnectorConfigs(Section):
    """What the ProxyStore connector is built from."""

    endpoints: list[UUID] = []
    """EndpointConnector: ProxyStore endpoint ids of the server and every client."""
    store_dir: str | None = None
    """FileConnector: a folder that server and clients share, in /dev/shm for clients here."""
    hostname: str | None = None
    """RedisConnector: where a Redis server is that server and clients reach."""
    port: Annotated[int, Field(ge=1, le=65535)] = 6379
    """RedisConnector: where it listens."""


class ProxystoreConfigs(Section):
    """Moving models by a way of their own instead of through Globus Compute."""

    enable_proxystore: bool = False
    """Off, models travel inside the task and must stay below its 10 MB."""
    connector_type: Literal["EndpointConnector", "FileConnector", "RedisConnector"] = (
        "EndpointConnector"
    )
    """Through ProxyStore endpoints, as files in a folder that both sides see, or through Redis."""
    connector_configs: ConnectorConfigs | None = None
    """Its arguments."""

    @model_validator(mode="after")
    def _complete(self) -> ProxystoreConfigs:
        given = self.connector_configs or ConnectorConfigs()
        needed = {
            "EndpointConnector": "endpoints",
            "FileConnector": "store_dir",
            "RedisConnector": "hostname",
        }
        key = needed[self.connector_type]
        if self.enable_proxystore and [n for n in needed.values() if getattr(given, n)] != [key]:
            raise ValueError(
                f"enable_proxystore needs connector_configs.{key} for {self.connector_type}, and "
                f"none of what others need"
            )
        return self


class S3Configs(Section):
    """Moving models through a bucket; sites need no settings, no keys, and only a way out."""

    enable_s3: bool = False
    """On, every model goes through the bucket, whatever `proxystore_configs` say."""
    s3_bucket: str = ""
    """Its name; objects are called fl/..., and are evicted when they are of no more use."""
    s3_creds_file: str | None = None
    """CSV with region,access_key_id,secret_access_key; without it, boto3 looks where it always
    does."""
    s3_endpoint_url: Annotated[str, Field(pattern="^https?://")] | None = None
    """The store, where it is not Amazon's: https://HOST, or http://HOST:PORT."""

    @model_validator(mode="after")
    def _needs_a_bucket(self) -> S3Configs:
        if self.enable_s3 and not self.s3_bucket:
            raise ValueError("enable_s3 needs s3_bucket")
        return self


class HubConfigs(Section):
    """Moving models through the federation's own HTTPS hub; sites need no settings, no keys."""

    enable_hub: bool = False
    """On, every model goes through the hub, whatever `proxystore_configs` say."""
    hub_url: str = ""
    """Where sites reach it: https://NAME:PORT."""
    hub_secret_file: str = ""
    """File with the secret that the hub and the server share."""
    hub_ca_file: str | None = None
    """Certificates in PEM by which alone the hub is known; without it, by any public authority's.
    """

    @model_validator(mode="after")
    def _complete(self) -> HubConfigs:
        if self.enable_hub and not (self.hub_url and self.hub_secret_file):
            raise ValueError("enable_hub needs hub_url and hub_secret_file")
        if self.enable_hub and not self.hub_url.startswith("https://"):
            raise ValueError("hub_url must begin with https://")
        return self


class GlobusComputeConfigs(Section):
    """How the server reaches Globus Compute."""

    function_id: UUID
    """Id of the one remote function, as `fl register` printed it."""
    environment_files: list[str] = []
    """KEY=VALUE files with credentials and folders, read where the environment lacks them; a
    client's credentials are read from its own files alone."""


class ServerCommConfigs(Section):
    """The server's ways to its clients."""

    globus_compute_configs: GlobusComputeConfigs | None = None
    """Needed as soon as one client has an endpoint id."""
    proxystore_configs: ProxystoreConfigs = ProxystoreConfigs()
    """How models move."""
    s3_configs: S3Configs = S3Configs()
    """How they move instead."""
    hub_configs: HubConfigs = HubConfigs()
    """Or how they move instead."""
    sealing: bool = False
    """Encrypt models and updates, so that what carries or keeps them cannot read them; an update
    that is not sealed is refused."""

    @model_validator(mode="after")
    def _one_way(self) -> ServerCommConfigs:
        if self.s3_configs.enable_s3 and self.hub_configs.enable_hub:
            raise ValueError("enable_s3 and enable_hub: models take one way, leave one out")
        return self


class ClientCommConfigs(Section):
    """A client's ways to the server."""

    globus_compute_configs: GlobusComputeConfigs | None = None
    """How a site is reached that has a Globus client of its own; without it, by the server's."""
    proxystore_configs: ProxystoreConfigs = ProxystoreConfigs()
    """How models move."""


class EarlyStopping(Section):
    """When a run ends before its last round; see `fl.server.stopping`."""

    patience: PositiveInt
    """Rounds in a row whose loss at the server is no better than the best before."""
    min_delta: float = Field(default=0.0, ge=0)
    """By how much a loss must be lower to be better."""


class ServerConfigs(Section):
    """The round loop."""

    num_clients: PositiveInt
    """How many clients clients.yaml must list: a guard against the wrong pair of files."""
    num_global_epochs: PositiveInt
    """Rounds."""
    scheduler: str = "SyncScheduler"
    """Who trains when, and when the server steps: a name of docs/algorithms.md, or of an entry
    point."""
    scheduler_kwargs: Arguments = {}
    """Its settings; `fl.server.schedulers.open_scheduler` checks both."""
    aggregator: str = "FedAvgAggregator"
    """What makes the next model of updates: a name of docs/algorithms.md, or of an entry point."""
    aggregator_kwargs: Arguments = {}
    """Its settings; `fl.server.aggregators.open_aggregator` checks both."""
    device: str = "cpu"
    """Where the server evaluates."""
    round_deadline: Seconds = 3600.0
    """Seconds from the start of a round until its missing clients are late; a client's task is
    given up after twice as long."""
    min_clients: PositiveInt | None = None
    """Updates that a round needs to count; all of them when not set."""
    norm_bound: Annotated[float, Field(gt=0)] | None = 100.0
    """How many times larger than the global model, and than the median of the sites' last updates,
    an update's Euclidean norm may be before it is dropped; null takes any."""
    server_validation: bool = False
    """Evaluate the global model at the server after each round, on `data_configs`."""
    data_configs: DataConfigs | None = None
    """The server's held-out set: the loader's second value."""
    federated_evaluation: PositiveInt | None = None
    """Every so many rounds, and after the last, sites evaluate the global model on their own
    validation sets."""
    early_stopping: EarlyStopping | None = None
    """End the run once the loss at the server no longer falls."""
    ship_source: bool = False
    """Send sites the files of model, loaders, loss and metric with every task, as the server has
    them in `FL_SITE_CODE`; a site runs them where its policy's `shipped_source` lets them in."""
    logging_output_dirname: str = "runs"
    """Folder that gets a folder for every run, relative to where fl-run is started."""
    logging_output_filename: FileName | None = None
    """What the name of a run's folder begins with."""
    trackers: list[str] = []
    """Who else is told each round's numbers: tensorboard, mlflow, wandb, or an entry point."""
    comm_configs: ServerCommConfigs = ServerCommConfigs()
    """How the server reaches its clients."""

    @model_validator(mode="after")
    def _consistent(self) -> ServerConfigs:
        if self.server_validation and self.data_configs is None:
            raise ValueError("server_validation needs data_configs, the server's held-out set")
        if self.early_stopping is not None and not self.server_validation:
            raise ValueError("early_stopping needs server_validation: it watches the loss there")
        if self.min_clients is not None and self.min_clients > self.num_clients:
            raise ValueError(f"min_clients must be at most num_clients ({self.num_clients})")
        return self


class CompressorConfigs(Section):
    """How the clients' updates are made smaller; APPFL's names, formats of `fl.compression`."""

    enable_compression: bool = False
    """Off, updates travel in the model's own dtypes."""
    lossy_compressor: Literal["bf16", "fp16", "int8"] | None = None
    """Narrower numbers; int8 has a scale for every 1,024 of them."""
    lossless_compressor: Literal["zstd", "auto"] | None = None
    """What is applied to the bytes; `auto` is zstd where a site finds that it saves time."""
    top_k: Annotated[float, Field(gt=0, le=0.5)] | None = None
    """Share of each tensor's numbers that travels, the largest; the site adds the rest to its next
    update."""
    param_cutoff: Annotated[int, Field(ge=0)] = 1024
    """Tensors of no more numbers than this travel as they are, as biases do."""

    @model_validator(mode="after")
    def _complete(self) -> CompressorConfigs:
        other = self.lossy_compressor or self.lossless_compressor
        if self.enable_compression and not (other or self.top_k):
            raise ValueError(
                "enable_compression needs lossy_compressor, lossless_compressor or top_k"
            )
        if self.top_k and other:
            raise ValueError("top_k goes with neither lossy_compressor nor lossless_compressor")
        return self


class SharedCommConfigs(Section):
    """What travels between every client and the server."""

    compressor_configs: CompressorConfigs = CompressorConfigs()
    """The format of updates."""


class SharedClientConfigs(Section):
    """What every client shares."""

    comm_configs: SharedCommConfigs = SharedCommConfigs()
    """What travels."""
    train_configs: TrainConfigs = TrainConfigs()
    """Training settings."""
    model_configs: ModelConfigs
    """The model."""


class ServerFile(Section):
    """server.yaml."""

    client_configs: SharedClientConfigs
    """What every client shares."""
    server_configs: ServerConfigs
    """The round loop."""


class ExperimentFile(ServerFile):
    """experiment.yml: what is trained. Where is the inventory's business, or `fl-run`'s."""

    data_configs: DataConfigs
    """Every site's loader; `num_clients` and `client_id` are filled into its arguments by site."""


class Client(Section):
    """One site of the federation."""

    endpoint_id: UUID | Literal["local"]
    """Globus Compute endpoint id, or `local` for a process on this machine."""
    client_id: FileName
    """The site's name in logs and metrics."""
    train_configs: Arguments = {}
    """What differs from `client_configs.train_configs` here, such as the device; a mapping in it,
    such as `optim_args`, key by key."""
    data_configs: DataConfigs
    """The site's data."""
    comm_configs: ClientCommConfigs = ClientCommConfigs()
    """The site's ways."""


class ClientsFile(Section):
    """clients.yaml."""

    clients: Annotated[list[Client], Field(min_length=1)]
    """The sites."""

    @model_validator(mode="after")
    def _unique(self) -> ClientsFile:
        names = [client.client_id for client in self.clients]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"client_id {name!r} stands twice")
        return self


class Federation(Section):
    """Both files, checked against each other; what `fl-run` runs."""

    client_configs: SharedClientConfigs
    server_configs: ServerConfigs
    clients: list[Client]
    notes: Annotated[list[str], Field(exclude=True)] = []
    """What the files say that has no effect, each in a line."""

    def train_configs(self, client: Client) -> TrainConfigs:
        """A client's training settings: the shared ones with its own laid over them."""
        shared = self.client_configs.train_configs.model_dump()
        return TrainConfigs.model_validate(_laid_over(shared, client.train_configs))


ARGUMENTS_OF = {
    "optim_args": {"optim"},
    "lr_scheduler_args": {"lr_scheduler"},
    "loss_fn_kwargs": {"loss_fn", "loss_fn_path", "loss_fn_name"},
}
"""Arguments, and the names of what they are arguments of: one's are not another's."""


def _laid_over(shared: Arguments, own: Arguments) -> Arguments:
    """One mapping over another, key by key."""
    both = {
        name: _laid_over(shared[name], value)
        for name, value in own.items()
        if isinstance(value, dict)
        and isinstance(shared.get(name), dict)
        and not ARGUMENTS_OF.get(name, set()) & own.keys()
    }
    return {**shared, **own, **both}
