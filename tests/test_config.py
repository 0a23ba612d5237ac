import errno
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fl.client.policy import Policy
from fl.config import (
    Client,
    ClientsFile,
    ConfigError,
    Federation,
    ServerConfigs,
    ServerFile,
    SharedClientConfigs,
    TrainConfigs,
)
from fl.config_files import Files, load_federation, load_section
from fl.record import Record

HUB = {"enable_hub": True, "hub_url": "https://h:8443", "hub_secret_file": "hub.key"}
ENDPOINT = "3f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"


def server_file():
    return {
        "client_configs": {
            "train_configs": {"optim_args": {"lr": 0.1}},
            "model_configs": {"model_path": "m.py", "model_name": "Net"},
        },
        "server_configs": {"num_clients": 2, "num_global_epochs": 3},
    }


def clients_file():
    data = {"dataset_path": "d.py", "dataset_name": "load"}
    return {
        "clients": [
            {"endpoint_id": "local", "client_id": "a", "data_configs": data},
            {"endpoint_id": "local", "client_id": "b", "data_configs": data},
        ]
    }


@pytest.fixture
def load(tmp_path):
    """Write both files, changed by a function, and load them."""

    def _load(change=lambda server, clients: None):
        server, clients = server_file(), clients_file()
        change(server, clients)
        paths = tmp_path / "server.yaml", tmp_path / "clients.yaml"
        for path, content in zip(paths, (server, clients), strict=True):
            path.write_text(yaml.safe_dump(content))
        return load_federation(*paths)

    return _load


def test_loads_with_defaults(load):
    federation = load()
    assert federation.server_configs.aggregator == "FedAvgAggregator"
    assert federation.server_configs.aggregator_kwargs == {}
    assert federation.train_configs(federation.clients[0]).optim_args == {"lr": 0.1}


def test_client_settings_override_shared_ones(load):
    def change(server, clients):
        clients["clients"][0]["train_configs"] = {"device": "cuda:1"}

    federation = load(change)
    devices = [federation.train_configs(client).device for client in federation.clients]
    assert devices == ["cuda:1", "cpu"]


def set_key(path, value):
    """A change that sets a dotted key of server.yaml (or of clients.yaml, under `clients.`)."""

    def change(server, clients):
        parts = path.split(".")
        target = clients if parts[0] == "clients" else server
        for part in parts[:-1]:
            target = target[int(part)] if part.isdigit() else target.setdefault(part, {})
        target[parts[-1]] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("server_configs.num_globl_epochs", 3, "did you mean num_global_epochs?"),
        ("client_configs.train_configs.optimizer", "SGD", "did you mean optim"),
        ("clients.0.data_configs.dataset_pth", "x", "did you mean dataset_path?"),
        ("clients.0.train_configs.devise", "cpu", "did you mean device?"),
        ("server_configs.num_global_epochs", "three", "should be a valid integer, not"),
        ("server_configs.num_global_epochs", 0, "should be greater than 0"),
        ("client_configs.train_configs.mode", "epochs", "should be 'epoch', 'step' or 'seconds'"),
        ("clients.0.endpoint_id", "not-a-uuid", "should be a valid UUID or 'local', not"),
        ("server_configs.num_clients", 3, "lists 2"),
        ("server_configs.round_deadline", float("inf"), "should be a finite number"),
        ("server_configs.round_deadline", 1e10, "should be less than or equal to 100000000"),
        ("clients.0.endpoint_idd", ENDPOINT, "clients.0.endpoint_idd: unknown key"),
        ("clients.0.uuid", ENDPOINT, "clients.0.uuid: unknown key"),
        ("client_configs.train_configs.num_workers", 50_000, "should be less than or equal to 64"),
        ("client_configs.model_configs.seed", 10**24, "should be less than"),
        ("server_configs.min_clients", 5, "min_clients must be at most"),
        ("server_configs.server_validation", True, "needs data_configs"),
        ("clients.1.client_id", "a", "stands twice"),
        ("clients.0.endpoint_id", ENDPOINT, "globus_compute_configs is missing"),
        (
            "server_configs.comm_configs",
            {"proxystore_configs": {"enable_proxystore": True}},
            "needs connector_configs.endpoints",
        ),
        (
            "client_configs.comm_configs",
            {"compressor_configs": {"enable_compression": True}},
            "needs lossy_compressor, lossless_compressor or top_k",
        ),
        (
            "server_configs.comm_configs.proxystore_configs",
            {"enable_proxystore": True, "connector_type": "FileConnector"},
            "needs connector_configs.store_dir",
        ),
        (
            "server_configs.comm_configs.proxystore_configs",
            {
                "enable_proxystore": True,
                "connector_type": "RedisConnector",
                "connector_configs": {"hostname": "redis", "store_dir": "/models"},
            },
            "needs connector_configs.hostname for RedisConnector, and none of what others need",
        ),
        (
            "server_configs.comm_configs",
            {"hub_configs": {"enable_hub": True, "hub_url": "https://h:8443"}},
            "enable_hub needs hub_url and hub_secret_file",
        ),
        (
            "server_configs.comm_configs",
            {"hub_configs": HUB | {"hub_url": "http://h:8443"}},
            "hub_url must begin with https://",
        ),
        (
            "server_configs.comm_configs",
            {"hub_configs": HUB, "s3_configs": {"enable_s3": True, "s3_bucket": "b"}},
            "models take one way",
        ),
    ],
)
def test_a_fault_is_one_line_with_file_key_and_remedy(load, tmp_path, path, value, expected):
    with pytest.raises(ConfigError) as caught:
        load(set_key(path, value))
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert message.startswith(str(tmp_path))
    assert ".yaml: " in message


def test_missing_loader_is_named(load):
    def change(server, clients):
        del clients["clients"][1]["data_configs"]

    with pytest.raises(ConfigError, match=r"clients\.yaml: clients\.1\.data_configs: missing"):
        load(change)


def test_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_federation(tmp_path / "none.yaml", tmp_path / "none.yaml")


@pytest.mark.parametrize("text", ["a: [1,", "\x00", "- 1\n- 2\n", "", "when: 2026-01-01\n"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = Path(tmp_path / "server.yaml")
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"server\.yaml"):
        load_federation(path, path)


@pytest.mark.parametrize(
    "key",
    [
        "client_configs.train_configs.dp_sgd",
        "client_configs.train_configs.local_dp",
        "server_configs.norm_bound",
        "clients.0.train_configs.dp_sgd",
    ],
)
def test_what_protects_is_not_switched_off_by_a_blank(load, tmp_path, key):
    """As where what stands below it is commented out, or a shell's variable is not set."""
    file = "clients.yaml" if key.startswith("clients.") else "server.yaml"
    load(set_key(key, None))  # null is written
    path, name = tmp_path / file, key.rpartition(".")[2]
    text = path.read_text()
    path.write_text(text.replace(f"{name}: null", f"{name}:"))
    assert path.read_text() != text
    with pytest.raises(ConfigError, match=r"is empty; write null to switch it off"):
        load_federation(tmp_path / "server.yaml", tmp_path / "clients.yaml")


def test_what_protects_is_not_switched_off_by_a_variable_that_is_not_set(load, tmp_path):
    load()
    files = tmp_path / "server.yaml", tmp_path / "clients.yaml"
    for key in ("client_configs.train_configs.local_dp", "server_configs.norm_bound"):
        load_federation(*files, [f"{key}=null"])
        with pytest.raises(ConfigError, match=r"is empty; write null to switch it off"):
            load_federation(*files, [f"{key}="])


@pytest.mark.parametrize("half", ["\\ud800", "\\udfff", "\\ud800x", "\\udc00\\ud800"])
def test_half_a_character_pours_no_file_out(tmp_path, half):
    file = tmp_path / "server.yaml"
    file.write_text(f'client_configs: "secret {half}"\n')
    with pytest.raises(ConfigError) as caught:
        load_section(file, ServerFile)
    assert "secret" not in str(caught.value)
    said = r"has half a character (\ud800 to \udfff), which no text can hold"
    assert str(caught.value) == f"{file}: {said}"


def test_a_character_in_two_escapes_is_whole(tmp_path):
    """As JSON has it, which is YAML too."""
    file = tmp_path / "server.yaml"
    face = "\N{GRINNING FACE}"
    file.write_text(json.dumps(server_file() | {"client_configs": face}))
    with pytest.raises(ConfigError, match=f'should be a mapping, KEY: VALUE, not "{face}"'):
        load_section(file, ServerFile)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BOMB, "is over 1000000 characters long with its aliases"),
        (f"# {'x' * 200_000}\n{BOMB}", "is over 20.* characters long with its aliases"),
        ("&a [*a]", "an alias must not stand inside what it names"),
        ("[" * 2000, "is not YAML"),
        ("[" * 205 + "]" * 205, "is nested too deep"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("2001-01-01: 1\nb: 1", "the key 2001-01-01 is no text; quote it"),
        ("b: 2001-01-01", "quote dates"),
        ("!!python/object/apply:os.system [id]", "is not YAML"),
    ],
)
def test_yaml_that_is_made_to_hurt_is_refused(tmp_path, text, expected):
    file = tmp_path / "server.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_section(file, ServerFile)


def test_a_large_federations_files_are_read(tmp_path, monkeypatch):
    """Every client has the ids of all: a file that says what it means in full is no bomb."""
    ids = [f"{number:08x}{ENDPOINT[8:]}" for number in range(160)]
    way = {"enable_proxystore": True, "connector_configs": {"endpoints": ids}}
    client = clients_file()["clients"][0] | {"comm_configs": {"proxystore_configs": way}}
    file = tmp_path / "clients.yaml"
    file.write_text(json.dumps({"clients": [client | {"client_id": f"s{n}"} for n in range(160)]}))
    clients = load_section(file, ClientsFile).clients
    assert len(clients) == 160

    monkeypatch.chdir(tmp_path)
    server = ServerFile.model_validate(server_file())
    sections = {"server_configs": server.server_configs, "client_configs": server.client_configs}
    record = Record.begin(Federation(**sections, clients=clients), str(tmp_path), {})
    assert record.federation().clients == clients


def keys(schema):
    return st.sampled_from(list(schema.model_fields))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(keys(ServerConfigs) | keys(Client) | st.text(max_size=5), inner)
    ),
    max_leaves=9,
)
SERVERS = st.dictionaries(
    keys(ServerFile) | st.text(max_size=5),
    VALUES | st.dictionaries(keys(ServerConfigs) | keys(SharedClientConfigs), VALUES),
)
TEXTS = st.text(max_size=40) | (VALUES | SERVERS).map(yaml.safe_dump)


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(TEXTS)
@example('"\\L"')
def test_any_file_is_read_or_refused_in_one_line(tmp_path, text):
    file = tmp_path / "any.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    for schema in (ServerFile, ClientsFile, Policy):
        told = refusal(file, schema)
        assert told is None or (told.startswith(str(file)) and len(told.splitlines()) == 1)


def refusal(file, schema):
    try:
        load_section(file, schema)
    except ConfigError as error:
        return str(error)
    return None


def test_files_that_may_not_be_looked_at(monkeypatch):
    def refuse(*_arguments, **_how):  # root, who may run this, may look at everything
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "stat", refuse)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"server.yaml: cannot be read \(Permission denied\)"):
        Files.of_folder(Path("locked")).load()


def test_a_clients_settings_go_over_shared_ones_key_by_key(load):
    def change(server, clients):
        shared, (first, second) = server["client_configs"]["train_configs"], clients["clients"]
        shared |= {"optim_args": {"lr": 0.05, "momentum": 0.9}, "lr_scheduler": "StepLR"}
        shared |= {"lr_scheduler_args": {"step_size": 1}}
        shared["dp_sgd"] = {"noise_multiplier": 1.0, "max_grad_norm": 0.1, "delta": 1e-6}
        first["train_configs"] = {"optim_args": {"lr": 0.01}, "dp_sgd": {"noise_multiplier": 2.0}}
        # Arguments of one optimizer are none of another's.
        second["train_configs"] = {"optim": "Adam", "optim_args": {"lr": 1e-3}, "dp_sgd": None}

    federation = load(change)
    one, other = map(federation.train_configs, federation.clients)
    assert one.optim_args == {"lr": 0.01, "momentum": 0.9}
    assert one.dp_sgd.model_dump() == {"noise_multiplier": 2, "max_grad_norm": 0.1, "delta": 1e-6}
    assert other.optim_args == {"lr": 1e-3}
    assert other.lr_scheduler_args == {"step_size": 1}
    assert other.dp_sgd is None


def test_what_is_set_for_one_site_is_set_for_no_other(tmp_path):
    """An alias is the same object twice, and so is what local sites have in common."""
    data = "data_configs: {dataset_path: d.py, dataset_name: load, dataset_kwargs: {a: {b: 1}}}"
    clients = tmp_path / "clients.yaml"
    clients.write_text(
        "clients:\n"
        f"- {{endpoint_id: local, client_id: a, train_configs: &t {{device: cpu}}, {data}}}\n"
        f"- {{endpoint_id: local, client_id: b, train_configs: *t, {data}}}\n"
    )
    (tmp_path / "server.yaml").write_text(yaml.safe_dump(server_file()))
    one = ["clients.a.train_configs.device=cuda"]
    federation = load_federation(tmp_path / "server.yaml", clients, one)
    assert [federation.train_configs(c).device for c in federation.clients] == ["cuda", "cpu"]

    experiment = server_file() | yaml.safe_load(data)
    (tmp_path / "experiment.yml").write_text(yaml.safe_dump(experiment))
    one = ("clients.site-a.data_configs.dataset_kwargs.a.b=2",)
    federation = Files(tmp_path / "experiment.yml", None, one).load()
    given = [client.data_configs.dataset_kwargs["a"] for client in federation.clients]
    assert given == [{"b": 2}, {"b": 1}]


@pytest.mark.parametrize("key", ["0", "1.5", "true", "null", "2026-01-01"])
def test_a_key_that_is_no_text_is_refused(tmp_path, key):
    """JSON would make a text of it, which no loader looks for."""
    file = tmp_path / "server.yaml"
    file.write_text(f"client_configs:\n  {key}: 1\n")
    with pytest.raises(ConfigError, match=f"line 2, column 3: the key {key} is no text; quote it"):
        load_section(file, ServerFile)


@pytest.mark.parametrize("section", ["dp_sgd", "local_dp"])
@pytest.mark.parametrize("norm", [0, 1e-35, 1e7, float("inf")])
def test_no_norm_is_so_small_that_float32_knows_none(section, norm):
    name = {"dp_sgd": "max_grad_norm", "local_dp": "clip_norm"}[section]
    with pytest.raises(ValidationError, match=name):
        TrainConfigs.model_validate({section: {"noise_multiplier": 1.0, name: norm}})
