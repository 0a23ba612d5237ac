"""A venv with packages that the site's own Python has; and one that is somebody's."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import TOP, sandbox_environment

SITES_TORCH = "2.99.0"


@pytest.fixture
def module(tmp_path) -> Path:
    """The Python of a module: this interpreter and library, and a torch of the site's."""
    library = Path(sysconfig.get_path("stdlib"))
    python, there = tmp_path / "module/bin/python3", tmp_path / "module/lib" / library.name
    python.parent.mkdir(parents=True)
    shutil.copy(Path(sys.executable).resolve(), python)
    there.mkdir(parents=True)
    for entry in library.iterdir():
        if entry.name not in ("site-packages", "dist-packages"):
            (there / entry.name).symlink_to(entry)
    info = there / f"site-packages/torch-{SITES_TORCH}.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {SITES_TORCH}\n"
    (info / "METADATA").write_text(metadata)
    # Everything else is as where the tests run: nothing is to be fetched.
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("torch", "fl_hpc", "__editable__")):
            (info.parent / entry.name).symlink_to(entry)
    return python


@pytest.fixture
def play(tmp_path, module):
    """Run the environment play for one site."""
    inventory = tmp_path / "sites.ini"
    inventory.write_text(
        f"[server]\nhome ansible_connection=local fl_site_dir={tmp_path}/home\n"
        f"[sites]\nhpc ansible_connection=local fl_site_dir={tmp_path}/site\n"
    )
    variables = {
        "ansible_python_interpreter": "{{ ansible_playbook_python }}",
        "fl_client_id": "d0f6b3a8-3d5b-4c53-9b0e-6a0f5b0f7a11",
        "fl_federation_dir": f"{tmp_path}/federation",
        "fl_environment_python": str(module),
        "fl_wheelhouse": f"{tmp_path}/none",
    }

    def _play(*packages: str, **more: object) -> subprocess.CompletedProcess[str]:
        extra = json.dumps(variables | {"fl_environment_site_packages": packages} | more)
        command = ["ansible-playbook", "-i", str(inventory), "-e", extra, "--limit", "hpc"]
        return subprocess.run(
            [*command, "playbooks/environment.yml"],
            cwd=TOP,
            # Whatever pip is told on this machine is not told at a site.
            env=sandbox_environment(tmp_path)
            | {"PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    return _play


def test_what_the_site_has_built_is_taken_as_it_is(tmp_path, play):
    """Its torch is not of the version in constraints.txt, which holds for everything else."""
    first = play("torch")
    assert first.returncode == 0, first.stdout + first.stderr
    code = "import fl; from importlib.metadata import version; print(version('torch'), fl.__file__)"
    said = subprocess.run(
        [tmp_path / "site/env/bin/python", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.startswith(f"{SITES_TORCH} {tmp_path}/site/env/")
    pins = (tmp_path / "site/constraints.txt").read_text()
    assert "\nparsl==" in pins
    assert "\ntorch==" not in pins
    assert re.findall(r"changed=(\d+)", play("torch").stdout) == ["0"]


def test_extras_are_installed_where_they_are_wanted(tmp_path, play):
    """This site reaches no index: pip cannot have them."""
    for entry in (tmp_path / "module/lib").glob("*/site-packages/opacus*"):
        entry.unlink()
    marker, pins = tmp_path / "site/env/.fl-installed", tmp_path / "site/env/.fl-pins"
    assert play("torch").returncode == 0
    installed = marker.read_text()
    versions = pins.read_text()
    assert versions.startswith((tmp_path / "site/constraints.txt").read_text() + "python ")
    done = play("torch", fl_environment_extras=["privacy"])
    assert done.returncode == 2
    assert "Cannot install fl-hpc[privacy]" in done.stdout
    assert "--no-cache-dir" in done.stdout
    # Who goes back to what was there before has it installed: pip may have come half way.
    # Daemons that were started meanwhile are restarted, also those that follow the versions alone.
    assert marker.read_text() != installed
    assert pins.read_text() == marker.read_text()
    assert re.findall(r"changed=(\d+)", play("torch").stdout) != ["0"]
    assert marker.read_text() == installed
    assert pins.read_text() == versions
    mistyped = play("torch", fl_environment_extras=["privcy"])
    assert "value of fl_environment_extras must be one or more of: privacy" in mistyped.stdout


def test_somebody_elses_environment_is_left_alone(tmp_path, play):
    theirs = tmp_path / "theirs/bin/python"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("#!/bin/sh\n")
    theirs.chmod(0o755)
    done = play(fl_environment_prefix=str(tmp_path / "theirs"))
    assert done.returncode == 2
    assert "theirs is there, and no deployment of this site made it" in " ".join(
        done.stdout.split()
    )
    assert list((tmp_path / "theirs").rglob("*")) == [theirs.parent, theirs]


# As a quota leaves it, a module that is retired, and an inventory that names another.
def half_made(site: Path, module: Path) -> Path:
    subprocess.run([module, "-m", "venv", "--without-pip", site / "env"], check=True)
    return module


def without_its_module(site: Path, module: Path) -> Path:
    (site / "env/bin/python3").unlink()
    (site / "env/bin/python3").symlink_to("/nowhere")
    return module


def of_another_module(site: Path, module: Path) -> Path:
    shutil.copytree(module.parents[1], site.parent / "newer", symlinks=True)
    return site.parent / "newer/bin/python3"


@pytest.mark.timeout(600)  # four plays, each with pip
def test_a_venv_that_does_not_fit_is_made_anew(tmp_path, play, module):
    """One mishap after the other: what each leaves is what the next befalls."""
    for befallen in (half_made, without_its_module, of_another_module):
        python = befallen(tmp_path / "site", module)
        done = play("torch", fl_environment_python=str(python))
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"home = {python.parent}\n" in (tmp_path / "site/env/pyvenv.cfg").read_text()
        command = [tmp_path / "site/env/bin/python", "-c", "import fl, pip; print(pip.__file__)"]
        said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert said.stdout.startswith(f"{tmp_path}/site/env/"), "the module's would do it too"
    again = play("torch", fl_environment_python=str(python))
    assert re.findall(r"changed=(\d+)", again.stdout) == ["0"]


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The packages of the user's own, which a Python that is no venv's looks for first."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    library = Path(sysconfig.get_path("stdlib")).name
    packages = tmp_path / "me/.local/lib" / library / "site-packages"
    packages.mkdir(parents=True)
    return packages


def install(packages: Path, name: str) -> Path:
    """Lay out an old distribution as pip does; answers with its one file."""
    file, info = packages / f"{name}_old.py", packages / f"{name}-0.0.1.dist-info"
    file.touch()
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
    names = (file.name, f"{info.name}/METADATA", f"{info.name}/RECORD")
    (info / "RECORD").write_text("".join(f"{listed},,\n" for listed in names))
    return file


def test_a_package_of_the_users_own_is_none_of_the_module(play, home):
    install(home, "mpi4py")
    done = play("torch", "mpi4py")
    assert done.returncode == 2
    assert "mpi4py of fl_environment_site_packages cannot be taken from" in " ".join(
        done.stdout.split()
    )


def test_what_pythonpath_names_is_not_taken_for_installed(tmp_path, play, monkeypatch):
    """A .bashrc says it, which nobody reads for the daemons that cron starts."""
    mine = tmp_path / "mine"
    mine.mkdir()
    for entry in (tmp_path / "module/lib").glob("*/site-packages/parsl*"):
        entry.rename(mine / entry.name)
    monkeypatch.setenv("PYTHONPATH", str(mine))
    done = play("torch")
    assert done.returncode == 2
    assert "ERROR: Cannot install globus-compute-endpoint" in done.stdout


def test_a_conda_prefix_takes_nothing_from_the_users_own_packages_nor_removes_them(
    tmp_path, play, module, home
):
    """It is no venv, where pip would not touch them."""
    mine = install(home, "fl_hpc")
    packages = next((tmp_path / "module/lib").glob("*/site-packages"))
    shutil.rmtree(packages / f"torch-{SITES_TORCH}.dist-info")
    for entry in Path(sysconfig.get_path("purelib")).glob("torch*"):
        (packages / entry.name).symlink_to(entry)
    (packages.parent / "EXTERNALLY-MANAGED").unlink(missing_ok=True)
    lock, conda = tmp_path / "lock", tmp_path / "conda"
    version = ".".join(map(str, sys.version_info[:3]))
    lock.write_text(f"@EXPLICIT\nfile:///noarch/python-{version}-0.tar.bz2#{'0' * 32}\n")
    conda.write_text(
        f'#!/bin/sh\n# create --yes --prefix PREFIX --file LOCK\ncp -a {tmp_path}/module "$4" &&\n'
        'ln -s python3 "$4/bin/python" && mkdir "$4/conda-meta" && touch "$4/conda-meta/history"\n'
        f'echo "$FL_SITE_SAYS" > {tmp_path}/heard\n'
    )
    conda.chmod(0o755)
    done = play(
        fl_environment_kind="conda",
        fl_environment_lock=str(lock),
        fl_environment_conda=str(conda),
        fl_service_environment={"FL_SITE_SAYS": "a proxy", "PIP_LOG": f"{tmp_path}/pip.log"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert mine.exists()
    assert (tmp_path / "heard").read_text() == "a proxy\n"
    assert (tmp_path / "pip.log").exists()
    assert "PYTHONNOUSERSITE=1" in (tmp_path / "site/site.env").read_text().splitlines()
