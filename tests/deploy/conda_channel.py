"""What a site without a conda channel lacks: a channel of one package, and a command to install it.

No conda channel can be counted on where tests run. The package is a real one that rattler, conda's
own library in Rust, links into a real prefix with its records; the command takes conda's words.
"""

import asyncio
import hashlib
import io
import json
import os
import sys
import tarfile
from argparse import ArgumentParser
from pathlib import Path
from urllib.parse import unquote, urlparse

import rattler

MINOR = ".".join(map(str, sys.version_info[:2]))
VERSION = ".".join(map(str, sys.version_info[:3]))


def publish(channel: Path, version: str = VERSION, subdir: str = "linux-64") -> str:
    """Put a package named python into a channel: this process's interpreter, and what it imports.

    Args:
        channel: The channel's folder.
        version: The package's.
        subdir: conda's name of the machines that it is for.

    Returns:
        A lock that names it.
    """
    archive = channel / subdir / f"python-{version}-0.tar.bz2"
    archive.parent.mkdir(parents=True, exist_ok=True)
    python = Path(sys.executable).resolve()
    library = f"lib/python{MINOR}/site-packages"
    here = next(path for path in sys.path if path.endswith(library))
    texts = {
        "pyvenv.cfg": f"home = {python.parent}\n",
        f"{library}/borrowed.pth": f"{here}\n",
    }
    paths = [_path(name, text.encode(), "hardlink") for name, text in texts.items()]
    paths.append(_path("bin/python", python.read_bytes(), "softlink"))
    identity = {"name": "python", "version": version, "build": "0", "build_number": 0}
    texts["info/index.json"] = json.dumps({**identity, "subdir": subdir, "depends": []})
    texts["info/paths.json"] = json.dumps({"paths": paths, "paths_version": 1})
    with tarfile.open(archive, "w:bz2") as package:
        for name, text in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            package.addfile(member, io.BytesIO(text.encode()))
        link = tarfile.TarInfo("bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, str(python)
        package.addfile(link)
    return f"# platform: {subdir}\n@EXPLICIT\n{archive.as_uri()}#{_md5(archive)}\n"


def write_command(path: Path) -> None:
    """Write a command that is called as micromamba, mamba and conda are."""
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} "$@"\n')
    path.chmod(0o755)


def main() -> None:
    """`create` or `install` a lock's packages."""
    parser = ArgumentParser()
    parser.add_argument("verb", choices=["create", "install"])
    parser.add_argument("--yes", action="store_true", required=True)
    parser.add_argument("--prefix", type=Path, required=True)
    parser.add_argument("--file", type=Path, required=True)
    asked = parser.parse_args()
    if asked.verb == "create" and asked.prefix.exists():
        sys.exit(f"error: there is something at {asked.prefix}; conda would wipe it")
    lines = asked.file.read_text().splitlines()
    records = [_record(line) for line in lines if line[:1] not in ("", "#", "@")]
    again = {record.name.normalized for record in records} if asked.verb == "install" else None
    cache = asked.prefix.with_name("pkgs")
    asyncio.run(
        rattler.install(
            records, asked.prefix, cache_dir=cache, reinstall_packages=again, show_progress=False
        )
    )
    os._exit(0)  # rattler's threads abort an interpreter that ends beside them


def _record(line: str) -> rattler.RepoDataRecord:
    url, _, checksum = line.partition("#")
    archive = Path(unquote(urlparse(url).path))
    if _md5(archive) != checksum:
        sys.exit(f"error: {url} is not what the lock names")
    name, version, build = archive.name.removesuffix(".tar.bz2").rsplit("-", 2)
    package = rattler.PackageRecord(
        name=name,
        version=version,
        build=rattler.BuildString(build),
        build_number=0,
        subdir=archive.parent.name,
        arch=None,
        platform=None,
    )
    channel = archive.parent.parent.as_uri()
    return rattler.RepoDataRecord(package, file_name=archive.name, url=url, channel=channel)


def _path(name: str, content: bytes, kind: str) -> dict[str, object]:
    checksum = hashlib.sha256(content).hexdigest()
    return {
        "_path": name,
        "path_type": kind,
        "sha256": checksum,
        "size_in_bytes": len(content),
    }


def _md5(archive: Path) -> str:
    return hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()


if __name__ == "__main__":
    main()
