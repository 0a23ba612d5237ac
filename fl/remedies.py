"""What to do about each fault that a check can find: a command where one helps."""

from __future__ import annotations

import re

from fl.client.check import Item
from fl.client.nodes import LAUNCHER
from fl.client.site_code import site_code_folder
from fl.config import Client, Federation

LOSS = "the loss gives"
MEND_LOSS = "--set client_configs.train_configs.loss_fn_kwargs={}, or mend the loss"


def remedy(item: Item, client: Client | None, federation: Federation) -> str:
    """What to do about a fault.

    Args:
        item: What failed, or what there is a doubt about.
        client: The site, or None for the server.
        federation: The configuration.

    Returns:
        A line for a person.
    """
    if client is None:
        return _at_the_server(item, federation)
    if item.check in ("way", "download", "upload"):
        return _way(item.message, f" -i INVENTORY --limit {client.client_id}")
    return _at_a_site(item, client, federation)


def _at_the_server(item: Item, federation: Federation) -> str:
    match item.check:
        case "model" | "held-out set" if "code folder" in item.message:
            return (
                "point FL_SITE_CODE to the folder that the files' paths begin in; those of an "
                "experiment.yml begin with its own folder's name"
            )
        case "model":
            file = site_code_folder() / federation.client_configs.model_configs.model_path
            return f"put it right in {file}, or what client_configs.model_configs says of it"
        case "held-out set" if item.message.startswith("device "):
            return "--set server_configs.device=cpu, or another that the message names"
        case "held-out set" if item.message.startswith(LOSS):
            return MEND_LOSS
        case "held-out set":
            return (
                f"put it right in {site_code_folder()}, or what server_configs.data_configs says; "
                "or leave out server_validation"
            )
        case "source":
            return (
                "put the file right, or point FL_SITE_CODE to the folder that the files' paths "
                "begin in, or leave out server_configs.ship_source"
            )
        case "files":
            return "leave those keys out; docs/appfl.md has what takes their place"
        case "run folder":
            return "another one: --set server_configs.logging_output_dirname=FOLDER"
        case "ways":
            return _way(item.message, " -i INVENTORY --limit server")
    return "put the key right that the message names, or try another value by --set KEY=VALUE"


def _way(message: str, only: str) -> str:
    """What to do about a way for models, at the machine that the play is limited to."""
    if re.search(r"\bhub\b", message):
        return _hub(message)
    if "Redis at" in message:
        return "is it up, and reached from there at that hostname and port, without a password?"
    if "no ProxyStore endpoint" in message:
        return (
            "is its login node's ProxyStore endpoint up (ansible-playbook playbooks/proxystore.yml"
            f"{only}), and does a proxy stand before it (fl_proxy: unset)?"
        )
    if "Failed to establish a new connection" in message:
        return f"start its ProxyStore endpoint: ansible-playbook playbooks/restart.yml{only}"
    if "ProxyStore" in message:
        return (
            "the endpoints do not reach each other: are the relay and both of them up? "
            "(ansible-playbook playbooks/health.yml -i INVENTORY)"
        )
    if "client credentials" in message:
        return f"export the right ones, then ansible-playbook playbooks/credentials.yml{only}"
    if "too large" in message:
        return "deploy with ProxyStore endpoints, which take models of any size"
    return "see the message, and the endpoint's log on its login node"


def _hub(message: str) -> str:
    """What to do about the hub; a site reaches it or does not, the rest is its machine's."""
    if "ProxyError" in message:
        return "have the site's proxy let its nodes CONNECT to the hub's name and port"
    if "CERTIFICATE_VERIFY_FAILED" in message:
        return (
            "hub_ca_file is not the hub's: ansible-playbook playbooks/hub.yml, then "
            "playbooks/federation.yml, -i INVENTORY"
        )
    if "expired" in message:
        return "the task waited for over a week: send it again, by fl-run --resume"
    return (
        "is it up (ansible-playbook playbooks/hub.yml -i INVENTORY), and do the site's nodes reach "
        "hub_url outwards?"
    )


def _at_a_site(item: Item, client: Client, federation: Federation) -> str:
    """What to do about what a site is, or else about what it is to train."""
    only = f"-i INVENTORY --limit {client.client_id}"
    match item.check:
        case "endpoint" if "client credentials" in item.message:
            play = f"ansible-playbook playbooks/rotate-credentials.yml {only}"
            return f"set its fl_client_secret to one that Globus takes, then {play}"
        case "endpoint":
            return f"start it: ansible-playbook playbooks/restart.yml {only}"
        case "worker" if client.endpoint_id == "local":
            return "do its loader and model come to an end? --deadline SECONDS waits longer"
        case "worker":
            return (
                "is the job waiting in the queue, or refused? ansible-playbook "
                f"playbooks/health.yml {only} asks its scheduler; else see the endpoint's log there"
            )
        case "policy":
            return _policy(item.message)
        case "versions":
            return f"ansible-playbook playbooks/upgrade.yml {only}"
        case "clock":
            return "chronyc tracking, on that machine, says why"
        case "disk" | "identity":
            return "make room there, or point FL_SITE_STATE in its environment to another folder"
    return _training(item, client, federation)


def _policy(message: str) -> str:
    """What to do about a rule of the site's owner."""
    if "shipped_source" in message:
        return (
            "ask the site's owner to list that digest under shipped_source in site-policy.yaml "
            "(docs/security.md), or to put the file into site_code"
        )
    if "rounds" in message:
        return (
            "--set server_configs.num_global_epochs=NUMBER, or ask the site's owner, whose "
            "site-policy.yaml says so (docs/security.md)"
        )
    return "ask the site's owner, whose site-policy.yaml says so (docs/security.md)"


def _training(item: Item, client: Client, federation: Federation) -> str:
    """What to do about a site's code, data, device or first step."""
    key = f"clients.{client.client_id}"
    loader = _code(client, client.data_configs.dataset_path)
    match item.check:
        case "site code":
            return f"{loader}, or point {key}.data_configs to another file"
        case "device" if LAUNCHER in item.message:
            return (
                "fl_compute_multi_node_launcher for that site in the inventory, then "
                f"ansible-playbook playbooks/compute.yml -i INVENTORY --limit {client.client_id}"
            )
        case "device" if item.message.startswith("nnodes"):
            return (
                f"--set {key}.train_configs.nnodes=NUMBER, or a site whose jobs have as many "
                "(fl_compute_multi_node, fl_compute_nodes_per_block; docs/deploy.md)"
            )
        case "device" if item.message.startswith("nproc_per_node asks"):
            return (
                f"--set {key}.train_configs.nproc_per_node=NUMBER, as many as the message says, or "
                "a queue whose nodes have more (fl_compute_queue)"
            )
        case "device":
            return (
                f"--set {key}.train_configs.device=auto, or a queue whose nodes have it "
                "(fl_compute_queue)"
            )
        case "model":
            return _code(client, federation.client_configs.model_configs.model_path)
        case "data":
            return f"{loader}, or what {key}.data_configs says of it"
        case "validation" if "returns no validation set" in item.message:
            return "return one as the loader's second value, or leave out do_validation"
        case "validation" if "out of memory" in item.message:
            return f"--set {key}.train_configs.val_batch_size=NUMBER, a smaller one"
        case "step" if "fl-hpc[privacy]" in item.message:
            return _privacy(client)
        case "step" if "out of memory" in item.message or "train_batch_size" in item.message:
            return f"--set {key}.train_configs.train_batch_size=NUMBER, a smaller one"
        case "step" | "validation" if item.message.startswith(LOSS):
            return MEND_LOSS
        case "step" if item.message.startswith("loss became"):
            return (
                f"{loader} where inputs are not finite; "
                "else --set client_configs.train_configs.optim_args.lr=NUMBER, a smaller one"
            )
    return (
        "do the loader's samples and classes fit the model's inputs and outputs? "
        f"--set client_configs.model_configs.model_kwargs=..., --set {key}.data_configs"
        ".dataset_kwargs=..."
    )


def _privacy(client: Client) -> str:
    if client.endpoint_id == "local":
        return "pip install 'fl-hpc[privacy]', into the environment that this command runs in"
    return (
        "fl_environment_extras: [privacy] for that site in the inventory, then ansible-playbook "
        f"playbooks/environment.yml -i INVENTORY --limit {client.client_id}"
    )


def _code(client: Client, path: str) -> str:
    name = client.client_id
    if client.endpoint_id == "local":
        return f"put it right in {site_code_folder() / path}"
    return (
        f"put it right in {path} in the site's site_code folder (the experiment's own files get "
        f"there by ansible-playbook playbooks/environment.yml -i INVENTORY --limit {name})"
    )
