"""A shell in which the documentation's commands are typed as they stand there."""

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from tests.documented import files


@dataclass
class Shell:
    """A shell in a folder that looks like a checkout.

    Attributes:
        here: The folder.
        environment: Its variables.
        exported: What lines before said to export.
    """

    here: Path
    environment: dict[str, str]
    exported: list[str] = field(default_factory=list)

    def type(self, line: str) -> subprocess.CompletedProcess[str]:
        """Type a line; a comment stands for the file of that name in a page, which is written."""
        if line.startswith("# "):
            (self.here / line.removeprefix("# ")).write_text(files()[line])
        if line.startswith("export "):
            self.exported.append(line)
        return subprocess.run(
            ["bash", "-c", "\n".join([*self.exported, line])],
            cwd=self.here,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )

    def must(self, line: str) -> str:
        """Type a line that has to succeed; what it said."""
        done = self.type(line)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def name_the_runs(self) -> None:
        """Give two of the runs that came to their end the names that the pages have."""
        runs = self.here / "runs"
        ended = sorted(model.parent for model in runs.glob("2*/model.safetensors"))
        for run, name in zip(ended, ("one", "other"), strict=False):
            if not os.path.lexists(runs / name):
                (runs / name).symlink_to(run)
