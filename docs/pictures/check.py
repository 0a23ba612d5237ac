"""Make check.svg: `fl check` over two sites on this machine, one of which has a fault.

python docs/pictures/check.py
"""

import io
from pathlib import Path

from rich.console import Console

from fl.check import check
from fl.check_table import screen
from fl.config_files import Files

EXPERIMENT = Path(__file__).parents[2] / "examples" / "digits"
FAULT = "clients.site-b.train_configs.device=cuda:7"


def main() -> None:
    """Check, and draw what a terminal would show."""
    found = list(check(Files.of_folder(EXPERIMENT, (FAULT,)), deadline=120))
    console = Console(record=True, width=110, file=io.StringIO(), force_terminal=True)
    console.print(screen(found, done=True))
    title = f"fl check federation --set {FAULT}"
    console.save_svg(str(Path(__file__).with_suffix(".svg")), title=title)


if __name__ == "__main__":
    main()
