"""Make check.svg: `fl check` over two sites on this machine, one of which has a fault.

python docs/pictures/check.py
"""

import io
import os
import tempfile
from pathlib import Path

import yaml
from rich.console import Console

TOP = Path(__file__).parents[2]
os.environ.setdefault("FL_SITE_CODE", str(TOP / "examples"))

from fl.check import check  # noqa: E402  (after the folder of models and loaders is known)
from fl.check_table import screen  # noqa: E402  (as above)
from fl.config import Files  # noqa: E402  (as above)


def files(folder: Path) -> Files:
    """The digits experiment for two sites in processes here."""
    server = yaml.safe_load((TOP / "examples" / "digits" / "experiment.yml").read_text())
    data = server.pop("data_configs")
    server["server_configs"]["num_clients"] = 2
    clients = [
        {
            "endpoint_id": "local",
            "client_id": f"site-{'ab'[number]}",
            "data_configs": {
                **data,
                "dataset_kwargs": {
                    **data["dataset_kwargs"],
                    "num_clients": 2,
                    "client_id": number,
                },
            },
        }
        for number in (0, 1)
    ]
    (folder / "server.yaml").write_text(yaml.safe_dump(server))
    (folder / "clients.yaml").write_text(yaml.safe_dump({"clients": clients}))
    fault = "clients.site-b.train_configs.device=cuda:7"
    return Files(folder / "server.yaml", folder / "clients.yaml", (fault,))


def main() -> None:
    """Check, and draw what a terminal would show."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(check(files(Path(folder)), deadline=120))
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(screen(found, done=True))
    title = "fl check federation --set clients.site-b.train_configs.device=cuda:7"
    console.save_svg(str(Path(__file__).with_suffix(".svg")), title=title)


if __name__ == "__main__":
    main()
