"""Other terminals find running stacks, and only those."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tollgate.local import discovery

ANNOUNCE = """
import os, sys, time
from tollgate.local import discovery
state = discovery.announce(sys.argv[1], {"NAME": sys.argv[1]}, os.environ)
print("announced", flush=True)
time.sleep(60)
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_RUNTIME_DIR": str(tmp_path)}


def test_nothing_runs(environ: dict[str, str]) -> None:
    assert discovery.find(environ) is None


def test_a_stack_is_found_until_it_closes(environ: dict[str, str]) -> None:
    state = discovery.announce("http://127.0.0.1:8080", {"AWS_REGION": "us-east-1"}, environ)
    assert discovery.find(environ) == {"AWS_REGION": "us-east-1", "TOLLGATE_URL": "http://127.0.0.1:8080"}
    assert discovery.find({**environ, "TOLLGATE_URL": "http://127.0.0.1:8080/"}) is not None
    assert discovery.find({**environ, "TOLLGATE_URL": "http://127.0.0.1:9090"}) is None
    state.close()
    assert discovery.find(environ) is None
    assert list(discovery.runtime_dir(environ).iterdir()) == []


def test_files_are_for_their_user_only(environ: dict[str, str]) -> None:
    state = discovery.announce("http://127.0.0.1:8080", {}, environ)
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.path.parent.stat().st_mode) == 0o700
    state.close()


def test_the_newest_of_two_stacks_is_found_and_a_killed_one_is_not(environ: dict[str, str]) -> None:
    def other(url: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", ANNOUNCE, url], stdout=subprocess.PIPE, env={**os.environ, **environ}
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"announced\n"
        return process

    with other("http://one") as first, other("http://two") as second:
        try:
            found = discovery.find(environ)
            assert found is not None
            assert found["NAME"] == "http://two"
            picked = discovery.find({**environ, "TOLLGATE_URL": "http://one"})
            assert picked is not None
            assert picked["NAME"] == "http://one"
            second.kill()
            second.wait()
            found = discovery.find(environ)
            assert found is not None
            assert found["NAME"] == "http://one"
            assert len(list(discovery.runtime_dir(environ).glob("*.json"))) == 1  # the stale file is gone
        finally:
            first.kill()
            second.kill()


def test_broken_files_are_no_reason_to_fail(environ: dict[str, str]) -> None:
    folder = discovery.runtime_dir(environ)
    (folder / "1.json").write_text("{")
    (folder / "2.json").write_text(json.dumps({"url": "http://x"}))
    assert discovery.find(environ) is None


def test_without_a_runtime_dir_the_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = discovery.runtime_dir({})
    assert folder.parent == tmp_path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_somebody_elses_link_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / f"tollgate-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PermissionError, match="not a folder of this user"):
        discovery.runtime_dir({})
