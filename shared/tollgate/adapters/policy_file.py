"""Reading ``policy.yaml``: every mistake with its path and line, duplicate keys refused, bounded in every way.

Scalars follow YAML 1.2 (JSON's, in effect): ``yes``, ``010`` and ``12:30`` are text, as whoever wrote them meant.
Aliases are allowed; what they expand to is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import yaml

from tollgate.domain.policy import Policy, TenantRecord
from tollgate.domain.policy_check import check
from tollgate.domain.policy_document import Document, Place, PolicyErrors, Problem
from tollgate.domain.policy_overrides import override
from tollgate.domain.policy_paths import Path

__all__ = ["FilePolicySource", "PolicyErrors", "Problem", "fragment", "load", "parse", "read"]

MAX_BYTES = 1_000_000
MAX_NODES = 200_000
"""Values after aliases are expanded: 'a billion laughs' stops here. 1 MB of text holds fewer than this."""
MAX_DEPTH = 32
"""A policy needs seven levels; libyaml and the JSON encoder recurse."""

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = frozenset(_PREFIX + name for name in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value"))
_INT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,40})")
_FLOAT = re.compile(r"[-+]?(0|[1-9][0-9_]{0,40})?(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?")
_EXPONENT = re.compile(r"-?[0-9]{1,40}[eE][-+]?[0-9]{1,3}")
"""A number in JSON and YAML 1.2, but text to PyYAML."""
_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


def load(path: str | FilePath, environ: Mapping[str, str]) -> Policy:
    """The policy of a file, with the environment's overrides. Raises `PolicyErrors`."""
    return parse(_read_text(path), environ, str(path))


def parse(text: str, environ: Mapping[str, str], source: str = "policy.yaml") -> Policy:
    """The policy of a text, with the environment's overrides. Raises `PolicyErrors` with everything that is wrong."""
    document = read(text, source)
    problems = override(document, environ)
    try:
        policy = check(document)
    except PolicyErrors as errors:
        raise PolicyErrors([*problems, *errors.problems]) from None
    if problems:
        raise PolicyErrors(problems)
    return policy


def read(text: str, source: str = "policy.yaml") -> Document:
    """The text as plain data, with the line of everything in it. Raises `PolicyErrors` where it is no YAML."""
    return _Reader(text, source).document()


def fragment(text: str) -> Any:
    """A value as one would write it in the file, such as ``5`` or ``{scope: user, requests: 5, per: minute}``.

    Raises `PolicyErrors`.
    """
    return _Reader(text, "value").document().value


def _read_text(path: str | FilePath) -> str:
    place = Place(str(path))
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyErrors([Problem((), f"cannot be read: {error.strerror}", place=place)]) from None
    try:
        return raw[: MAX_BYTES + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(raw) > MAX_BYTES:
            raise PolicyErrors([Problem((), f"is larger than {MAX_BYTES:,} bytes", place=place)]) from None
        place = Place(str(path), raw.count(b"\n", 0, error.start) + 1)
        raise PolicyErrors([Problem((), "is not UTF-8 text", place=place)]) from None


class _Reader:
    """Turns YAML's nodes into plain data and notes where each came from."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._places: dict[Path, Place] = {}
        self._problems: list[Problem] = []
        self._nodes = 0

    def document(self) -> Document:
        root = self._compose()
        value = self._value(root, (), 0) if root is not None else None
        if self._problems:
            raise PolicyErrors(self._problems)
        return Document(value, self._source, self._places)

    def _compose(self) -> yaml.Node | None:
        text = self._text
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise self._failure("holds half a character (a lone surrogate)", text.count("\n", 0, error.start)) from None
        if size > MAX_BYTES:
            raise self._failure(f"is larger than {MAX_BYTES:,} bytes", 0)
        # libyaml where PyYAML has it: ten times faster
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            self._refuse_depth(loader)
            return yaml.compose(text, Loader=loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            what = " ".join(filter(None, (error.problem, error.context)))
            raise self._failure(f"is not YAML: {what}", getattr(mark, "line", 0)) from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position)
            raise self._failure(f"is not YAML: {error.reason}", line) from None

    def _refuse_depth(self, loader: Any) -> None:
        """Look at the events first: composing nodes recurses, events do not."""
        depth = 0
        for event in yaml.parse(self._text, Loader=loader):
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise self._failure("is nested too deeply", getattr(event.start_mark, "line", 0))
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1

    def _failure(self, message: str, line: int) -> PolicyErrors:
        """`line` counts from 0, as YAML's marks do."""
        return PolicyErrors([Problem((), message, place=Place(self._source, line + 1))])

    def _value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._places.setdefault(path, Place(self._source, node.start_mark.line + 1))
        self._nodes += 1
        if self._nodes > MAX_NODES or depth > MAX_DEPTH:
            raise self._failure("its aliases expand to more than a policy can hold", node.start_mark.line)
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            return [self._value(entry, (*path, i), depth + 1) for i, entry in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            return self._scalar(node, path)
        self._problem(path, f"the tag {node.tag.replace(_PREFIX, '!!')!r:.80} is not allowed")
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problems.append(
                    Problem(path, "a list or mapping cannot be a name", place=Place(self._source, line))
                )
            elif key.value == "<<" and not key.style:
                hint = "use an alias for the whole value"
                place = Place(self._source, line)
                self._problems.append(Problem(path, "merge keys (<<) are not supported", hint, place))
            elif key.value in found:
                message = f"is here a second time: first in line {self._places[(*path, key.value)].line}"
                self._problems.append(Problem((*path, key.value), message, place=Place(self._source, line)))
            else:
                name = self._sound(key.value, path)
                self._places[(*path, name)] = Place(self._source, line)
                found[name] = self._value(value, (*path, name), depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = node.value
        if node.style or (node.tag == _PREFIX + "str" and not _EXPONENT.fullmatch(text)):
            return self._sound(text, path)
        if text in _WORDS:
            return _WORDS[text]
        if _INT.fullmatch(text):
            return int(text)
        if _FLOAT.fullmatch(text) and any(c.isdigit() for c in text):
            return float(text)
        if text.lower() in (".nan", ".inf", "-.inf", "+.inf"):
            return float(text.replace(".", ""))
        return self._sound(text, path)

    def _sound(self, text: str, path: Path) -> str:
        """Escapes can write half a character, which nothing downstream could encode."""
        if text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text):
            return text
        self._problem(path, "holds half a character (a lone surrogate)")
        return text.encode("utf-8", "replace").decode()

    def _problem(self, path: Path, message: str) -> None:
        self._problems.append(Problem(path, message, place=self._places.get(path, Place(self._source))))


class FilePolicySource:
    """The policy and the tenants of one file, for `tollgate serve` without tables.

    A file that was edited is read again when it is next asked for; one that cannot be used any more is reported, and
    what was read last stays in force.
    """

    def __init__(self, path: str | FilePath, environ: Mapping[str, str]) -> None:
        """Reads the file. Raises `PolicyErrors`."""
        self._path = FilePath(path)
        self._environ = environ
        self._stamp = self._stat()
        self._policy = load(path, environ)

    async def policy(self) -> Policy:
        stamp = self._stat()
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._policy = load(self._path, self._environ)
            except PolicyErrors as errors:
                _alarm(errors)
        return self._policy

    async def tenant(self, name: str) -> TenantRecord | None:
        spec = (await self.policy()).tenants.get(name)
        return TenantRecord(tenant=name, **vars(spec)) if spec is not None else None

    def _stat(self) -> tuple[int, int, int]:
        """What changes when the file does (an editor's rename included); zeros where there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_size, status.st_ino)


def _alarm(errors: PolicyErrors) -> None:
    from tollgate.adapters import telemetry

    problems = [problem.as_dict() for problem in errors.problems]
    telemetry.log("ERROR", "the policy file cannot be used; the last good one stays in force", problems=problems)
    telemetry.metric("Tollgate", {"service": telemetry.service()}, PolicyRejected=1)
