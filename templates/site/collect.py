#!/usr/bin/env python3
"""Packs a site's logs and configuration for a bug report, without secrets: `collect ARCHIVE`.

Of each file the last megabyte, with every value of secrets/credentials.env taken out, and whatever
else looks like a token or a password. Unchanged logs give the same archive.
"""

import gzip
import io
import re
import shlex
import sys
import tarfile
from pathlib import Path
from typing import Iterator, List, Pattern

LAST_BYTES = 1_000_000
KINDS = [
    "logs/*.log*",
    "daemons/*",
    "site.env",
    "proxystore/*/config.toml",
    "proxystore/*/log.txt*",
    "globus_compute/*/config.yaml",
    "globus_compute/*/user_*",
    "globus_compute/**/*.log*",
    "globus_compute/*/submit_scripts/*",
]
# Each has what may be told in its first group, and what may not after it. Each begins with text of
# its own: a pattern that could begin anywhere would take minutes on a log of one long line.
PATTERNS = [
    r"(Bearer\s+)[\w.~+/=-]+",
    r"(://[^\s:/@]*:)[^\s@/]+(?=@)",
    r"((?:access|refresh|id)_token[\"']?\s*[:=]\s*[\"']?)[\w.~+/=-]+",
    r"((?:secret|password)[\"']?\s*[:=]\s*[\"']?)[\w.~+/=-]+",
    r"([?&](?:s|X-Amz-Signature)=)[\w.~+/=%-]+",
]
REDACTED = r"\g<1>[redacted]"


def secrets(site: Path) -> List[Pattern[str]]:
    """What must not leave the site, as patterns."""
    file = site / "secrets" / "credentials.env"
    lines = shlex.split(file.read_text()) if file.exists() else []
    pairs = (line.partition("=") for line in lines)
    values = {value for name, _, value in pairs if name.endswith("_SECRET") and value}
    return [re.compile(f"(){re.escape(value)}") for value in sorted(values)] + [
        re.compile(pattern, re.IGNORECASE) for pattern in PATTERNS
    ]


def files(site: Path) -> Iterator[Path]:
    """The files of a bug report; nothing that a link leads out to."""
    found = {file for kind in KINDS for file in site.glob(kind)}
    return (file for file in sorted(found) if file.is_file() and not file.is_symlink())


def redacted(file: Path, patterns: List[Pattern[str]]) -> bytes:
    """The end of a file, without its secrets."""
    text = file.read_bytes()[-LAST_BYTES:].decode(errors="replace")
    for pattern in patterns:
        text = pattern.sub(REDACTED, text)
    return text.encode()


def main(arguments: List[str]) -> int:
    """Write the archive."""
    site = Path(__file__).absolute().parent.parent
    patterns = secrets(site)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for file in files(site):
            content = redacted(file, patterns)
            entry = tarfile.TarInfo(f"{site.name}/{file.relative_to(site)}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    Path(arguments[0]).write_bytes(gzip.compress(buffer.getvalue(), mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
