"""What lands on a site, for every kind of scheduler, loaded as the daemons load it."""

import functools
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from globus_compute_endpoint.endpoint.config.utils import load_config_yaml

from fl.client import nodes
from tests.conftest import BIN, TOP, sandbox_environment

FUNCTION = "6f0b7f0e-5a55-4d0c-8c1e-0d4b6a0f2b11"
MACHINES = ["polaris", "sophia", "aurora", "delta", "perlmutter", "workstation"]
SCHEDULED = [name for name in MACHINES if name != "workstation"]
MULTI_NODE = ["polaris-nodes", "aurora-nodes", "delta-nodes"]
EXPECTED = Path(__file__).parent / "expected"


def render(folder: Path, *words: str, **environment: str) -> str:
    """Render inventory/sites.ini on this machine; answers with what the play said."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "fl_site_dir": f"{folder}/{{{{ inventory_hostname }}}}",
        "fl_federation_dir": str(folder),
        "fl_environment_kind": "existing",
        "fl_environment_prefix": str(BIN.parent),
        "fl_client_id": "11111111-2222-4333-8444-555555555555",
        # The loader looks the interface up, and this machine has no hsn0.
        "fl_compute_interface": "lo",
    }
    done = subprocess.run(
        [
            "ansible-playbook",
            "-i",
            "inventory/sites.ini",
            "-i",
            "tests/deploy/multi_node.ini",
            "-e",
            json.dumps(variables),
            *words,
            "tests/deploy/render.yml",
        ],
        cwd=TOP,
        env=sandbox_environment(folder) | environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=240,  # nine sites, each of whose files the daemons' own loaders read
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """The folders of inventory/sites.ini's sites, rendered."""
    folder = tmp_path_factory.mktemp("sites")
    (folder / "function.json").write_text(json.dumps({"function_id": FUNCTION}))
    render(folder)
    return folder


def rendered(site: Path) -> dict:
    """The user endpoint's configuration, as the endpoint's own command renders it."""
    return yaml.safe_load(rendered_text(site))


@functools.cache
def rendered_text(site: Path) -> str:
    template = site / "globus_compute" / site.name / "user_config_template.yaml.j2"
    done = subprocess.run(
        [BIN / "globus-compute-endpoint", "render-user-config", "-t", template],
        env=sandbox_environment(site) | {"GLOBUS_COMPUTE_USER_DIR": str(site / "globus_compute")},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout


@pytest.mark.parametrize("machine", SCHEDULED + MULTI_NODE)
def test_the_job_that_parsl_submits(sites, machine, tmp_path, monkeypatch):
    """Line by line, with what a run changes named: JOB, SCRIPTS, SITE and ENV."""
    taken = tmp_path / "taken"
    for name in ("qsub", "sbatch"):
        command = tmp_path / name
        command.write_text(f'#!/bin/sh\necho {name} "$@" > {taken}\necho Submitted batch job 1\n')
        command.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    engine = load_config_yaml(rendered_text(sites / f"my-{machine}")).engine
    provider = engine.executor.provider
    provider.script_dir = str(tmp_path)
    assert provider.submit("process_worker_pool.py OPTIONS", tasks_per_node=1, job_name="parsl")
    submitted = taken.read_text()
    script = Path(submitted.split()[-1])
    written = f"# {submitted}{script.read_text()}"
    for changing, name in {
        script.name: "JOB",
        str(tmp_path): "SCRIPTS",
        str(sites / f"my-{machine}"): "SITE",
        str(BIN): "ENV/bin",
    }.items():
        written = written.replace(changing, name)
    assert written.splitlines() == (EXPECTED / f"{machine}.sh").read_text().splitlines()


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (
            "polaris-nodes",
            "mpiexec --cpu-bind none --depth=64 --ppn 1 -n 2 --hostfile FOLDER/hosts",
        ),
        ("aurora-nodes", "mpiexec --cpu-bind none --ppn 1 -n 2 --hostfile FOLDER/hosts"),
        ("delta-nodes", "srun --overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 -c 128"),
    ],
)
def test_what_starts_a_process_on_each_node(machine, expected, tmp_path, monkeypatch):
    """By what the job's script exports, in a job that names its nodes as PBS does."""
    script = (EXPECTED / f"{machine}.sh").read_text()
    exported = re.search(r"^export (FL_NODE_LAUNCHER=.*)$", script, re.MULTILINE)[1]
    settings = dict(word.split("=", 1) for word in shlex.split(exported))
    monkeypatch.setenv("FL_NODE_LAUNCHER", settings["FL_NODE_LAUNCHER"])
    nodefile = tmp_path / "nodefile"
    nodefile.write_text("x3006c0s13b0n0\nx3006c0s13b1n0\n")
    monkeypatch.setenv("PBS_NODEFILE", str(nodefile))
    words = " ".join(nodes.command(2, tmp_path))
    agent = f" {sys.executable} -m fl.client.agent FOLDER"
    assert words.replace(str(tmp_path), "FOLDER") == expected + agent


@pytest.mark.parametrize("there", [True, False])
def test_a_job_has_the_module_command_whoever_started_the_endpoint(tmp_path, there):
    """A play may have had it from a .bashrc, and cron has none; the profile sets the path anew."""
    script = (EXPECTED / "sophia.sh").read_text()
    (line,) = re.findall("^type module .*$", script, re.MULTILINE)
    profile = tmp_path / "profile"
    profile.write_text("module() { echo of the profile; }\nPATH=/bin\n")
    had = "module() { echo its own; }\n" if there else ""
    job = f"{had}{line.replace('/etc/profile', str(profile))}\nmodule load conda\necho $PATH\n"
    said = subprocess.run(
        ["/bin/bash"],
        input=job,
        env={"PATH": "/opt/slurm/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = "its own\n/opt/slurm/bin\n" if there else "of the profile\n/bin:/opt/slurm/bin\n"
    assert said == expected


def test_polaris(sites):
    site = sites / "my-polaris"
    engine = rendered(site)["engine"]
    provider = engine["provider"]
    assert provider["type"] == "PBSProProvider"
    assert provider["account"] == "my-project"
    assert provider["queue"] == "debug"
    assert provider["walltime"] == "00:30:00"
    assert provider["select_options"] == "ngpus=4"
    assert provider["scheduler_options"] == "#PBS -l filesystems=home:eagle"
    assert provider["launcher"] == {
        "type": "MpiExecLauncher",
        "bind_cmd": "--cpu-bind",
        "overrides": "--depth=64 --ppn 1",
    }
    init = provider["worker_init"].splitlines()
    assert init.index("module load conda") < init.index(
        "unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY"
    )
    assert engine["address"] == {"type": "address_by_interface", "ifname": "lo"}


def test_delta(sites):
    configuration = rendered(sites / "my-delta")
    provider = configuration["engine"]["provider"]
    assert provider["type"] == "SlurmProvider"
    assert provider["partition"] == "cpu"
    assert provider["account"] == "abcd-delta-cpu"
    assert provider["launcher"] == {"type": "SrunLauncher", "overrides": "-c 128"}
    assert configuration["amqp_port"] == 443
    assert "module load anaconda3_cpu" in provider["worker_init"]


def test_workstation(sites):
    assert rendered(sites / "my-workstation")["engine"]["provider"]["type"] == "LocalProvider"


@pytest.mark.parametrize("name", [f"my-{machine}" for machine in MACHINES])
def test_every_site_runs_one_function_with_json(sites, name):
    site = sites / name
    manager = load_config_yaml((site / "globus_compute" / name / "config.yaml").read_text())
    assert manager.allowed_functions == (FUNCTION,)
    assert rendered(site)["engine"]["allowed_serializers"] == [
        "fl.endpoints.serialization.TaskByName",
        "globus_compute_sdk.serialize.JSONData",
    ]
    schema = json.loads((site / "globus_compute" / name / "user_config_schema.json").read_text())
    assert schema["properties"] == {}
    assert schema["additionalProperties"] is False


def test_another_operator_or_cron_writes_the_same_files(sites):
    for user in ("ann", ""):
        said = render(sites, "--limit", "my-workstation", USER=user)
        assert re.findall(r"changed=(\d+)", said) == ["0"]


def test_daemons_are_restarted_for_other_versions_of_an_environment(sites):
    for daemon in ("compute", "proxystore"):
        file = sites / "my-workstation/daemons" / f"{daemon}.json"
        followed = json.loads(file.read_text())["restart_for"]
        assert f"{sites}/my-workstation/versions.json" in followed


def test_no_daemon_is_restarted_for_what_pip_was_told_before_it_has_done_it():
    """One that was started meanwhile would count as new, and never be restarted."""
    for daemon in ("proxystore", "relay"):
        definition = (TOP / "templates" / daemon / "daemon.json.j2").read_text()
        assert "fl_environment_prefix ~ '/.fl-pins'" in definition
        assert "constraints.txt" not in definition


@pytest.mark.parametrize("name", [f"my-{machine}" for machine in MACHINES])
def test_a_user_endpoint_does_not_inherit_the_secret(sites, name):
    file = sites / name / "globus_compute" / name / "user_environment.yaml"
    variables = yaml.safe_load(file.read_text())
    assert variables["GLOBUS_COMPUTE_CLIENT_SECRET"] == ""
    assert variables["PROXYSTORE_GLOBUS_CLIENT_SECRET"] == ""


def test_a_refused_file_says_so_in_one_line(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text('name = "a"\nuuid = "not-a-uuid"\nport = 1\n')
    done = subprocess.run(
        [sys.executable, TOP / "templates/site/validate.py", "proxystore", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "not-a-uuid" in done.stderr


def test_an_interface_that_is_not_there_says_which_there_are(tmp_path):
    file = tmp_path / "user_config_template.yaml.j2"
    file.write_text(
        "engine:\n  type: GlobusComputeEngine\n  provider: {type: LocalProvider}\n"
        "  address: {type: address_by_interface, ifname: hsn9}\n"
    )
    done = subprocess.run(
        [sys.executable, TOP / "templates/site/validate.py", "compute-template", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "No such device: set fl_compute_interface to one of this machine's" in line
    assert re.search(r"\(.*\blo\b.*\)$", line)


def test_an_engine_in_the_managers_file_is_refused(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text("engine: {type: ThreadPoolEngine}\n")
    done = subprocess.run(
        [sys.executable, TOP / "templates/site/validate.py", "compute-config", file],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "user_config_template" in done.stderr
