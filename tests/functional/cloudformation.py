"""template.yaml as CloudFormation would see it: translated from SAM, and resolved for given parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parents[2] / "template.yaml"

Tree = Any
"""Parsed YAML or JSON."""

ABSENT = object()
"""What `AWS::NoValue` leaves."""


@cache
def source() -> dict[str, Tree]:
    """The template as it is written."""
    from samtranslator.yaml_helper import yaml_parse  # its translator takes a second, for these tests alone

    template: dict[str, Tree] = yaml_parse(TEMPLATE.read_text())
    return template


@cache
def translated() -> dict[str, Tree]:
    """The template without SAM: what CloudFormation deploys."""
    import boto3
    from samtranslator.parser.parser import Parser
    from samtranslator.translator.translator import Translator

    template = deepcopy(source())
    del template["Globals"]["Function"]["CodeUri"]
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            # the translator takes no local folders: `sam package` would have uploaded them
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    session = boto3.session.Session(region_name="eu-central-1")
    result: dict[str, Tree] = Translator({}, Parser(), boto_session=session).translate(template, {})
    return result


def resources(kind: str) -> dict[str, Tree]:
    """The properties of all translated resources of a type, by logical id."""
    return {name: it.get("Properties", {}) for name, it in translated()["Resources"].items() if it["Type"] == kind}


def deployed(**given: str | int) -> dict[str, Tree]:
    """The resources that exist with these parameters, with every condition decided."""
    template = translated()
    parameters = {name: str(it["Default"]) for name, it in template["Parameters"].items()}
    assert given.keys() <= parameters.keys()
    parameters |= {name: str(value) for name, value in given.items()}

    def holds(name: str) -> bool:
        return bool(decide(template["Conditions"][name]))

    def decide(tree: Tree) -> Tree:
        match tree:
            case {"Ref": "AWS::NoValue"}:
                return ABSENT
            case {"Ref": str(name)} if name in parameters:
                return parameters[name]
            case {"Condition": str(name), **rest} if not rest:
                return holds(name)
            case {"Fn::If": [str(name), then, otherwise]}:
                return decide(then if holds(name) else otherwise)
            case {"Fn::Equals": [left, right]}:
                return str(decide(left)) == str(decide(right))
            case {"Fn::Not": [it]}:
                return not decide(it)
            case {"Fn::And": list(parts)}:
                return all(decide(part) for part in parts)
            case {"Fn::Or": list(parts)}:
                return any(decide(part) for part in parts)
            case {"Fn::Join": [str(by), {"Ref": str(name)}]} if name in parameters:
                return by.join(parameters[name].split(","))
            case dict():
                return {key: value for key, value in ((k, decide(v)) for k, v in tree.items()) if value is not ABSENT}
            case list():
                return [value for value in map(decide, tree) if value is not ABSENT]
            case _:
                return tree

    everything = template["Resources"].items()
    return {name: decide(it) for name, it in everything if "Condition" not in it or holds(it["Condition"])}


def references(tree: Tree) -> Iterator[str]:
    """The logical ids and parameters that a resource names."""
    match tree:
        case {"Ref": str(name)}:
            yield name
        case {"Fn::GetAtt": [str(name), *_]}:
            yield name
        case {"Fn::Sub": [str(text), dict(values)]}:
            yield from (name for name in _substituted(text) if name not in values)
            yield from references(values)
        case {"Fn::Sub": str(text)}:
            yield from _substituted(text)
        case dict():
            depends = tree.get("DependsOn", [])
            yield from [depends] if isinstance(depends, str) else depends
            for value in tree.values():
                yield from references(value)
        case list():
            for value in tree:
                yield from references(value)


def statements(role: Mapping[str, Tree]) -> Iterator[Mapping[str, Tree]]:
    """A role's own policy statements, those under a condition too."""
    for policy in role["Policies"]:
        for statement in policy["PolicyDocument"]["Statement"]:
            match statement:
                case {"Fn::If": [_, then, _]}:
                    yield then
                case _:
                    yield statement


def _substituted(text: str) -> list[str]:
    return [name.partition(".")[0] for name in re.findall(r"\$\{([^!}]+)\}", text)]


FUNCTIONS = (
    "AlertsFunction", "AuthorizerFunction", "InspectFunction", "MeteringFunction", "ProxyFunction", "PublisherFunction",
    "ReconcilerFunction", "TokenTriggerFunction",
)  # fmt: skip
