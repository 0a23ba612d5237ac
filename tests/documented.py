"""The commands of README.md and docs/*.md, and what is done with each: run, or why not."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

TOP = Path(__file__).parents[1]
PAGES = [TOP / "README.md", *sorted((TOP / "docs").glob("*.md"))]
PROGRAMS = ("fl", "fl-run", "ansible-playbook", "make", "python")

NEEDS_CUDA = (
    "fl-run federation --set server_configs.num_global_epochs=20 --set "
    "clients.site-b.train_configs.device=cuda"
)

OWN_DATA = (
    'export OWN_DATA="--set clients.site-a.data_configs.dataset_kwargs.file=$PWD/site-a.csv '
    "--set clients.site-b.data_configs.dataset_kwargs.file=$PWD/site-b.csv "
    "--set server_configs.data_configs.dataset_kwargs.file=$PWD/test.csv "
    '--set server_configs.data_configs.dataset_kwargs.held_out=0.9"'
)

ALONE = [
    ". .venv/bin/activate",
    'eval "$(_FL_RUN_COMPLETE=bash_source fl-run)"',
    'eval "$(_FL_COMPLETE=bash_source fl)"',
    "fl init my-experiment --model mlp",
    "fl-run my-experiment",
    "# tables.py",
    "python tables.py",
    "# my-experiment/model.py",
    OWN_DATA,
    "fl-run my-experiment $OWN_DATA --set client_configs.train_configs.num_local_epochs=10",
]
"""Run by `test_docs.py`, one after the other. What is exported holds for what follows, and a
comment stands for the file of that name in a page."""

RUN = [
    "fl check federation --quick",
    "fl check federation",
    "fl-run federation --dry-run",
    "fl-run federation",
    "fl status",
    # Before another experiment is deployed, whose sites would fail by other things than a device.
    NEEDS_CUDA,
    "ansible-playbook deploy.yml -i inventory/sandbox.ini -e fl_experiment=$PWD/my-experiment",
    "fl check federation $OWN_DATA",
    "fl-run federation $OWN_DATA --set client_configs.train_configs.num_local_epochs=10",
    "fl report",
    "fl status runs/one --json",
    "fl report runs/one runs/other --out both.html",
    "fl audit show audit.jsonl",
    "fl audit verify audit.jsonl",
    "fl audit verify audit.jsonl --head 3b0d...",
]
"""Run by `end_to_end/test_docs.py` after those, over the sandbox's two sites."""

ELSEWHERE = {
    "fl init my-experiment --model cnn": "test_starter.py",
    "fl sandbox up": "conftest.py",
    "ansible-playbook deploy.yml -i inventory/sandbox.ini": "conftest.py",
    "ansible-playbook playbooks/teardown.yml -i inventory/sandbox.ini": "conftest.py",
    "fl sandbox down": "conftest.py",
    "ansible-playbook playbooks/health.yml -i inventory/sandbox.ini": "deploy/test_deploy.py",
    "fl-run --server federation/server.yaml --clients federation/clients.yaml": (
        "end_to_end/test_fl_run.py"
    ),
    "fl-run --resume runs/TIME-PID": "test_resume.py",
    "fl-run federation --set 'server_configs.trackers=[tensorboard]'": "test_trackers.py",
    'ansible sites -i INVENTORY -m copy -a "src=$PWD/resources '
    'dest={{ fl_site_dir }}/site_code/ mode=0600 directory_mode=0700"': "end_to_end/test_appfl.py",
    "export FL_SITE_CODE=$PWD": "end_to_end/test_appfl.py",
    "fl-run --server server_fedavg.yaml --clients clients.yaml --set "
    "server_configs.comm_configs.globus_compute_configs.function_id=ID": "end_to_end/test_appfl.py",
}
"""Run by another test, which has what it needs: a run that was killed, APPFL's files."""

NOT_HERE = {
    "ansible-playbook deploy.yml -i inventory/sites.ini --limit home,hpc": (
        "needs accounts at the sites"
    ),
    "ansible-playbook deploy.yml -i inventory/sites.ini --check": "needs accounts at the sites",
    "ansible-playbook deploy.yml -i inventory/sites.ini": "needs accounts at the sites",
    "git clone THE-ADDRESS-OF-THIS-PROJECT fl-hpc": "these tests stand in a clone",
    "cd fl-hpc": "these tests stand in a clone",
    "make .venv/ready .wheelhouse/ready": "made what these tests run in",
    "make demo": "sets up an environment of its own; what it runs is run here",
    "make test": "is what runs this",
    "pip install 'fl-hpc[report]'": "asks a package index",
    "pip install 'fl-hpc[tensorboard]' tensorboard": "asks a package index",
    "tensorboard --logdir runs": "serves pages until it is stopped",
    "python -m benchmarks.updates": "measures, which says nothing beside other tests",
    "python -m benchmarks.big_rounds 100 400 1000": (
        "measures, which says nothing beside other tests"
    ),
    "python -m benchmarks.secure_sums": "measures, which says nothing beside other tests",
    "python tests/private_loopback.py python -m benchmarks.hub": (
        "measures, which says nothing beside other tests"
    ),
    "python tests/private_loopback.py python -m benchmarks.growth picture.svg": (
        "measures, which says nothing beside other tests"
    ),
    "python tests/private_loopback.py python -m benchmarks.deploy_time": (
        "measures, which says nothing beside other tests"
    ),
}
"""Run by no test, and why."""


def tokens(page: Path) -> Iterator[Token]:
    """A page's pieces, those inside lines too."""
    for token in MarkdownIt().enable("table").parse(page.read_text()):
        yield token
        yield from token.children or []


def commands() -> set[str]:
    """Every command that stands in a block of code, each in one line; files by their names."""
    lines = [line for block in _blocks() if not _is_no_command(block) for line in _lines(block)]
    return {*lines, *files()}


def files() -> dict[str, str]:
    """Every file that a page says to write, by its first line, which names it."""
    return {block.partition("\n")[0]: block for block in _blocks("python")}


def _blocks(language: str = "") -> list[str]:
    """The pages' blocks of code that are in a language, or in none that matters here."""
    return [
        token.content for page in PAGES for token in tokens(page) if _language(token) == language
    ]


def _language(token: Token) -> str | None:
    """python, or nothing in particular; None of inventories, Sphinx's directives, and no code."""
    if token.type == "fence" and token.info == "python":
        return "python"
    plain = token.type == "fence" and not token.info.startswith(("{", "ini"))
    return "" if plain or token.type == "code_block" else None


def _lines(block: str) -> list[str]:
    joined = " ".join(block.replace("\\\n", " ").split(" "))
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


def _is_no_command(block: str) -> bool:
    """Settings, a message, or a drawing: whatever is none of these is taken for commands."""
    if block.startswith(("error: ", "[project")) or "-->" in block:
        return True
    try:
        return isinstance(yaml.safe_load(block), dict)
    except yaml.YAMLError:
        return False


def inline_commands() -> set[tuple[str, ...]]:
    """Every command that stands inside a line, split as a shell would."""
    texts = {
        token.content for page in PAGES for token in tokens(page) if token.type == "code_inline"
    }
    split = {tuple(shlex.split(text)) for text in texts if text.startswith(PROGRAMS)}
    return {words for words in split if words[0] in PROGRAMS and len(words) > 1}
