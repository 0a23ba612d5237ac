"""Known holes in the dependencies that constraints.txt pins, by pip-audit: a part of `make lint`.

    python -m tests.audit

It asks PyPI for the advisories of each version. Of what PyPI does not tell, or where it is not
reached, pip-audit says that no hole is known; here that is said to be not audited.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PINNED = Path(__file__).parents[1] / "constraints.txt"
WAIVED: dict[str, str] = {}
"""Advisories that do not concern this project, each with its reason."""


def main() -> int:
    """Say what was found; 1 where a version has a hole that is not waived."""
    audited, said = audit()
    for package in audited:
        for hole in holes(package):
            fixed = ", ".join(hole["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {hole['id']}, mended in {fixed}")
    left_out = [package["name"] for package in audited if "skip_reason" in package]
    if len(left_out) == len(audited):
        print(f"NOT AUDITED: no advisory of the {len(audited)} pinned packages was had{said}")
    elif left_out:
        print(f"NOT AUDITED: {', '.join(left_out)}")
    return int(any(map(holes, audited)))


def audit() -> tuple[list[dict[str, Any]], str]:
    """Packages as pip-audit tells of them, none where it fails; and its last words."""
    command = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--format=json"]
    command += ["--progress-spinner=off", "--requirement", str(PINNED)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    last = done.stderr.strip().rpartition("\n")[2]
    try:
        return json.loads(done.stdout)["dependencies"], ""
    except ValueError:
        return [], f": {last}"


def holes(package: dict[str, Any]) -> list[dict[str, Any]]:
    """A package's advisories that are not waived."""
    return [hole for hole in package.get("vulns", []) if hole["id"] not in WAIVED]


if __name__ == "__main__":
    sys.exit(main())
