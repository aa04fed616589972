"""What `sam build` made (`make sam-check` runs it first), and each function's code running on nothing but its bundle.

The bundles for AWS hold libraries for arm64. To run one here, the same target builds it once more for this machine.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.functional.cloudformation import TEMPLATE, resources
from tollgate.local.children import free_port

pytestmark = pytest.mark.sam

ROOT = TEMPLATE.parent
FUNCTIONS = (
    "AlertsFunction", "AuthorizerFunction", "InspectFunction", "MeteringFunction", "ProxyFunction", "PublisherFunction",
    "TokenTriggerFunction",
)  # fmt: skip
AARCH64 = 0xB7
"""ELF's number for the machine."""
UNCHECKED_HASH = 0b01
"""A .pyc's flags: found by the source's hash, which nobody checks at import."""
MAX_MB = 50
"""Of a bundle, unpacked: a cold start reads it. Lambda's limit is 250 MB."""

IMPORT = """
import sys
sys.path.insert(0, {bundle!r})
import {module}
assert callable({module}.{attribute})
foreign = [it.__file__ for it in sys.modules.values() if "site-packages" in (getattr(it, "__file__", "") or "")]
assert not foreign, foreign
"""

Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Build a function's bundle for this machine and Python, once."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            out = tmp_path_factory.mktemp(name)
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            here = [f"ARTIFACTS_DIR={out}", f"BUNDLE_ARCH={platform.machine()}", f"BUNDLE_PYTHON={version}"]
            subprocess.run(["make", "--no-print-directory", f"build-{name}", *here], cwd=ROOT, check=True)
            made[name] = out
        return made[name]

    return make


def for_aws(name: str) -> Path:
    folder = ROOT / ".aws-sam" / "build" / name
    assert folder.is_dir(), "run `make sam-check`, which builds the bundles first"
    return folder


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bundle_holds_its_function_and_no_other(name: str) -> None:
    bundle = for_aws(name)
    functions = {path.name for path in (bundle / "functions").iterdir() if path.is_dir()} - {"__pycache__"}
    assert functions == {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.removesuffix("Function")).lower()}
    assert (bundle / "run.sh").exists() == (name == "ProxyFunction")
    assert not (bundle / "tollgate" / "local").exists()
    assert not (bundle / "tollgate" / "cli.py").exists()
    assert not (bundle / "tollgate" / "cli").exists()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_bundle_holds_no_tests_no_secrets_and_nothing_that_the_runtime_has(name: str) -> None:
    bundle = for_aws(name)
    names = {path.relative_to(bundle).parts[0] for path in files(bundle)}
    assert names.isdisjoint({"boto3", "botocore", "pydantic", "shared", "tests", "bench", "moto", "policy.yaml", "pip"})
    for path in files(bundle):
        assert not re.search(
            r"(^|/)(tests?|\.git)/|(^|/)\.env|\.(pem|key|lock|in|toml)$", str(path.relative_to(bundle))
        )
        if path.relative_to(bundle).parts[0] in ("functions", "lua", "run.sh", "tollgate"):
            assert not re.search(rb"AKIA[0-9A-Z]{16}|PRIVATE KEY-|\bsk-[A-Za-z0-9]{20}", path.read_bytes())
    assert sum(path.stat().st_size for path in files(bundle)) < MAX_MB * 1_000_000


@pytest.mark.parametrize("name", FUNCTIONS)
def test_binaries_are_for_the_machine_that_the_template_names(name: str) -> None:
    assert resources("AWS::Lambda::Function")[name]["Architectures"] == ["arm64"]
    for path in files(for_aws(name)):
        if path.suffix == ".so" or ".so." in path.name:
            head = path.read_bytes()[:20]
            assert head[:4] == b"\x7fELF", path
            assert struct.unpack_from("<H", head, 18) == (AARCH64,), path


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_module_comes_with_bytecode_that_needs_no_look_at_its_source(name: str) -> None:
    bundle = for_aws(name)
    found = {
        path.parent.parent / f"{path.name.split('.')[0]}.py": path for path in files(bundle) if path.suffix == ".pyc"
    }
    modules = {path for path in files(bundle) if path.suffix == ".py"}
    # without Lambda's Python there is none: another one's bytecode would be dead weight
    assert found.keys() == (modules if lambdas_python() else set())
    for path in found.values():
        assert path.name.endswith(".cpython-313.pyc")
        assert struct.unpack_from("<I", path.read_bytes(), 4) == (UNCHECKED_HASH,), path


def test_the_lua_scripts_go_with_the_redis_store() -> None:
    scripts = {path.name for path in (ROOT / "lua").glob("*.lua")}
    for name in FUNCTIONS:
        bundle = for_aws(name)
        has_store = (bundle / "tollgate" / "adapters" / "redis_limits.py").exists()
        assert has_store == (name not in ("AuthorizerFunction", "TokenTriggerFunction"))
        assert {path.name for path in bundle.glob("lua/*")} == (scripts if has_store else set())


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "ProxyFunction"])
def test_a_handler_imports_with_nothing_but_its_bundle(name: str, build: Build) -> None:
    handler = resources("AWS::Lambda::Function")[name]["Handler"]
    module, _, attribute = handler.rpartition(".")
    program = IMPORT.format(bundle=str(build(name)), module=module, attribute=attribute)
    # isolated: no site-packages, no environment, no working directory
    subprocess.run([python(), "-I", "-S", "-c", program], env={}, check=True, cwd="/")


def test_the_proxy_serves_from_its_bundle_as_lambda_starts_it(build: Build, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(python())
    port = free_port()
    environment = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "LAMBDA_TASK_ROOT": str(build("ProxyFunction")),
        "AWS_LAMBDA_FUNCTION_NAME": "proxy",
        "AWS_LWA_PORT": str(port),
        "AWS_REGION": "eu-central-1",
        "TOLLGATE_STORE_URL": "dynamodb://limits",
        "TOLLGATE_POLICY_TABLE": "policy",
        "TOLLGATE_TENANTS_TABLE": "tenants",
        "TOLLGATE_LEDGER_TABLE": "ledger",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",  # nobody is there: a start must not wait for AWS
        "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none",
    }
    proxy = subprocess.Popen([build("ProxyFunction") / "run.sh"], env=environment, cwd="/")
    try:
        assert answer(f"http://127.0.0.1:{port}/healthz", proxy) == 200
    finally:
        proxy.terminate()
        assert proxy.wait(10) in (0, -15)


def answer(url: str, process: subprocess.Popen[bytes], within_s: float = 20) -> int:
    """The status of `url`, once the process serves it."""
    until = time.monotonic() + within_s
    while True:
        assert process.poll() is None, "the process ended"
        try:
            with urllib.request.urlopen(url, timeout=2) as response:
                return int(response.status)
        except OSError:
            assert time.monotonic() < until, f"no answer within {within_s} s"
            time.sleep(0.05)


def lambdas_python() -> bool:
    """Whether this machine has the Python that the functions run on."""
    if sys.version_info[:2] == (3, 13):
        return True
    found = shutil.which("python3.13")  # a version manager's shim may be there for a Python that is not
    return found is not None and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


def python() -> str:
    """The interpreter without this virtual environment's libraries."""
    return os.path.realpath(sys.executable)
