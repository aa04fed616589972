"""template.yaml, after the SAM translator, is what CloudFormation would deploy: the front door and the functions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from functions.alerts import handler as alerts
from tests.functional.cloudformation import (
    FUNCTIONS,
    TEMPLATE,
    deployed,
    references,
    resources,
    source,
    statements,
    translated,
)
from tollgate.adapters import event_bus
from tollgate.authentication import ANSWERED_WITHIN_S, CACHE_VARIABLE, MAX_CACHE_S, bridged_s
from tollgate.local import api_gateway, log_pipe, streams
from tollgate.local.gateway_auth import CACHE_S
from tollgate.wire import errors

ROOT = TEMPLATE.parent


def api() -> dict[str, Any]:
    body: dict[str, Any] = resources("AWS::ApiGateway::RestApi")["GatewayApi"]["Body"]
    return body


def operations() -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): it for path, methods in api()["paths"].items() for method, it in methods.items()}


# -- the front door ------------------------------------------------------------------------------------------------


def test_every_route_streams_for_as_long_as_api_gateway_allows() -> None:
    assert operations()
    for route, operation in operations().items():
        integration = operation["x-amazon-apigateway-integration"]
        assert integration["type"] == "aws_proxy", route
        assert integration["responseTransferMode"] == "STREAM", route
        assert integration["uri"]["Fn::Sub"].endswith("${ProxyFunction.Arn}/response-streaming-invocations"), route
        assert integration["timeoutInMillis"] == 900_000, route


def test_routes_are_those_of_the_local_stand_in() -> None:
    local = {
        (path, method.lower()): asks for path, methods in api_gateway.ROUTES.items() for method, asks in methods.items()
    }
    template = {
        route: identity_source(operation) for route, operation in operations().items() if "{path+}" not in route[0]
    }
    assert template == local


def identity_source(operation: dict[str, Any]) -> bytes | None:
    """The header that the operation's authorizer is asked about."""
    (scheme,) = [name for security in operation["security"] for name in security]
    if scheme == "NONE":
        return None
    authorizer = api()["components"]["securitySchemes"][scheme]["x-amazon-apigateway-authorizer"]
    named: str = authorizer["identitySource"]
    return named.removeprefix("method.request.header.").lower().encode()


def test_unknown_paths_go_to_the_proxy_of_authorised_callers() -> None:
    for beginning, header in api_gateway.CATCH_ALL:
        operation = api()["paths"][beginning + "{path+}"]["x-amazon-apigateway-any-method"]
        assert identity_source(operation) == header


def test_each_authorizer_sees_the_request_and_is_cached_by_one_header_alone() -> None:
    """With a second identity source, requests that lack one of them would never reach the function."""
    schemes = api()["components"]["securitySchemes"]
    sources = {name: it["x-amazon-apigateway-authorizer"]["identitySource"] for name, it in schemes.items()}
    header = "method.request.header."
    assert sources == {"TokenAuthorizer": header + "Authorization", "KeyAuthorizer": header + "x-api-key"}
    for scheme in schemes.values():
        authorizer = scheme["x-amazon-apigateway-authorizer"]
        assert authorizer["type"] == "request"
        assert "AuthorizerFunction" in references(authorizer["authorizerUri"])
        assert authorizer["authorizerResultTtlInSeconds"] == CACHE_S


def test_the_authorizer_knows_how_long_its_answers_are_remembered() -> None:
    """All that is remembered of an API key together is what revoking one may take."""
    function = source()["Resources"]["AuthorizerFunction"]["Properties"]
    assert function["Timeout"] == ANSWERED_WITHIN_S
    assert function["Environment"]["Variables"][CACHE_VARIABLE] == {"Ref": "AuthorizerCacheSeconds"}
    parameter = source()["Parameters"]["AuthorizerCacheSeconds"]
    assert parameter["MaxValue"] == MAX_CACHE_S
    # what is left has to outlast API Gateway's memory, or the function is never asked in time to use it
    assert bridged_s({CACHE_VARIABLE: str(parameter["Default"])}) > parameter["Default"] == CACHE_S


def test_the_endpoint_is_regional_and_throttled() -> None:
    assert resources("AWS::ApiGateway::RestApi")["GatewayApi"]["EndpointConfiguration"] == {"Types": ["REGIONAL"]}
    (stage,) = resources("AWS::ApiGateway::Stage").values()
    everything, health = stage["MethodSettings"]
    assert everything["ThrottlingRateLimit"] == {"Ref": "StageRateLimit"}
    assert everything["ThrottlingBurstLimit"] == {"Ref": "StageBurstLimit"}
    assert health["ResourcePath"] == "/~1healthz"
    assert health["ThrottlingRateLimit"] < 10


def test_access_logs_are_there_when_asked_for_and_hold_no_credentials() -> None:
    assert "AccessLogGroup" not in deployed()
    assert "AccessLogSetting" not in deployed()["GatewayApiStage"]["Properties"]
    stack = deployed(AccessLogs="yes")
    setting = stack["GatewayApiStage"]["Properties"]["AccessLogSetting"]
    assert setting["DestinationArn"] == {"Fn::GetAtt": ["AccessLogGroup", "Arn"]}
    line = json.loads(setting["Format"])
    assert {"request_id", "ip", "status", "caller"} <= line.keys()
    assert "authorization" not in setting["Format"].lower()


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("UNAUTHORIZED", api_gateway.UNAUTHORIZED),
        ("ACCESS_DENIED", api_gateway.ACCESS_DENIED),
        ("MISSING_AUTHENTICATION_TOKEN", api_gateway.MISSING_AUTHENTICATION_TOKEN),
        ("RESOURCE_NOT_FOUND", api_gateway.MISSING_AUTHENTICATION_TOKEN),
        ("INVALID_SIGNATURE", api_gateway.MISSING_AUTHENTICATION_TOKEN),
        ("REQUEST_TOO_LARGE", api_gateway.REQUEST_TOO_LARGE),
        ("THROTTLED", errors.rate_limit_exceeded("", 1_000_000, "Global")),
        ("WAF_FILTERED", errors.rate_limit_exceeded("", 60_000_000, "IP")),
        ("AUTHORIZER_FAILURE", api_gateway.AUTHORIZER_FAILURE),
        ("AUTHORIZER_CONFIGURATION_ERROR", api_gateway.AUTHORIZER_FAILURE),
        ("INTEGRATION_FAILURE", api_gateway.INTEGRATION_FAILURE),
        ("INTEGRATION_TIMEOUT", api_gateway.INTEGRATION_TIMEOUT),
    ],
)
def test_gateway_responses_are_the_errors_that_the_proxy_and_the_stand_in_give(
    name: str, error: errors.ApiError
) -> None:
    response = api()["x-amazon-apigateway-gateway-responses"][name]
    assert response["statusCode"] == str(error.status)
    shown = json.loads(response["responseTemplates"]["application/json"])
    expected: dict[str, Any] = error.payload()  # type: ignore[assignment]  # object, to look inside
    if not error.message:
        assert shown["error"].pop("message")
        expected["error"].pop("message")
    assert shown == expected
    headers = response["responseParameters"]
    assert headers.pop("gatewayresponse.header.x-request-id") == "context.requestId"
    assert headers == {f"gatewayresponse.header.{key}": f"'{value}'" for key, value in error.headers.items()}


@pytest.mark.parametrize("name", ["DEFAULT_4XX", "DEFAULT_5XX"])
def test_every_other_refusal_has_the_same_shape_and_keeps_its_status(name: str) -> None:
    response = api()["x-amazon-apigateway-gateway-responses"][name]
    assert "statusCode" not in response
    # messageString is the message as a JSON string, quotes included
    body = response["responseTemplates"]["application/json"].replace("$context.error.messageString", '"no"')
    assert json.loads(body)["error"].keys() == {"message", "type", "param", "code"}


def test_the_web_acl_is_there_when_asked_for_and_guards_the_stage() -> None:
    assert "WebAcl" not in deployed()
    with_waf = deployed(WafRequestsPerFiveMinutes=2000)
    (rule,) = with_waf["WebAcl"]["Properties"]["Rules"]
    assert rule["Action"] == {"Block": {}}
    assert rule["Statement"]["RateBasedStatement"]["AggregateKeyType"] == "IP"
    assert set(references(with_waf["WebAclAssociation"])) >= {"WebAcl", "GatewayApi", "GatewayApiStage"}


# -- functions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_run_where_their_bundles_are_made_for(name: str) -> None:
    function = resources("AWS::Lambda::Function")[name]
    assert function["Runtime"] == "python3.13"
    assert function["Architectures"] == ["arm64"]
    assert source()["Resources"][name]["Metadata"]["BuildMethod"] == "makefile"
    handler = function["Handler"]
    if name == "ProxyFunction":
        script = ROOT / "functions/proxy" / handler
        assert script.stat().st_mode & 0o111
    else:
        module, _, attribute = handler.rpartition(".")
        path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
        assert f"def {attribute}(" in path.read_text()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_log_to_a_group_of_their_own_that_forgets(name: str) -> None:
    function = resources("AWS::Lambda::Function")[name]
    group = function["LoggingConfig"]["LogGroup"]["Ref"]
    assert group == name.replace("Function", "LogGroup")
    assert resources("AWS::Logs::LogGroup")[group]["RetentionInDays"] == {"Ref": "LogRetentionDays"}
    # Lambda rewrites the JSON lines of a process that is not its own runtime, unless the format is Text
    assert function["LoggingConfig"]["LogFormat"] == ("Text" if name == "ProxyFunction" else "JSON")


def test_the_proxy_is_behind_the_web_adapter() -> None:
    proxy = resources("AWS::Lambda::Function")["ProxyFunction"]
    variables = proxy["Environment"]["Variables"]
    assert variables["AWS_LAMBDA_EXEC_WRAPPER"] == "/opt/bootstrap"
    assert variables["AWS_LWA_INVOKE_MODE"] == "response_stream"
    assert variables["AWS_LWA_READINESS_CHECK_PATH"] == "/healthz"
    (layer,) = proxy["Layers"]
    assert layer["Fn::Sub"].endswith(":753240598075:layer:LambdaAdapterLayerArm64:${WebAdapterLayerVersion}")
    assert proxy["Timeout"] * 1000 == 900_000


def test_usage_records_reach_metering_and_what_fails_is_kept() -> None:
    subscriptions = resources("AWS::Logs::SubscriptionFilter").values()
    for one in subscriptions:
        assert one["LogGroupName"] == {"Ref": "ProxyLogGroup"}
        assert one["DestinationArn"] == {"Fn::GetAtt": ["MeteringFunction", "Arn"]}
    subscription, reports = sorted(subscriptions, key=lambda one: str(one["FilterPattern"]), reverse=True)
    assert reports["FilterPattern"] == log_pipe.REPORT_PATTERN
    assert subscription["FilterPattern"] == log_pipe.USAGE_PATTERN
    passes = log_pipe.json_filter(subscription["FilterPattern"])
    assert [passes(json.dumps({"event": name})) for name in ("usage.open", "usage.close", "refusals", "other")] == [
        True,
        True,
        True,
        False,
    ]
    invocations = resources("AWS::Lambda::EventInvokeConfig").values()
    (invocation,) = (found for found in invocations if found["FunctionName"] == {"Ref": "MeteringFunction"})
    kept = {"Fn::GetAtt": ["MeteringDeadLetters", "Arn"]}
    assert invocation["DestinationConfig"]["OnFailure"]["Destination"] == kept
    variables = resources("AWS::Lambda::Function")["MeteringFunction"]["Environment"]["Variables"]
    assert variables["TOLLGATE_DEAD_LETTER_QUEUE_URL"] == {"Ref": "MeteringDeadLetters"}
    assert translated()["Resources"]["MeteringDeadLetters"]["DeletionPolicy"] == "Retain"


def test_calls_that_were_never_closed_are_looked_for_now_and_then() -> None:
    assert schedules("MeteringFunction") == {"rate(5 minutes)": None}


def schedules(function: str) -> dict[str, Any]:
    """When a function is called by itself, and the event that it gets then, if not the schedule's own."""
    return {
        rule["ScheduleExpression"]: target.get("Input")
        for rule in resources("AWS::Events::Rule").values()
        for target in rule["Targets"]
        if target["Arn"] == {"Fn::GetAtt": [function, "Arn"]}
    }


def test_the_ledger_is_archived_every_month_and_the_archive_outlives_the_stack() -> None:
    (schedule,) = resources("AWS::Scheduler::Schedule").values()
    target = schedule["Target"]
    assert target["Arn"]["Fn::Sub"].endswith(":scheduler:::aws-sdk:dynamodb:exportTableToPointInTime")
    asked = json.loads(target["Input"]["Fn::Sub"])
    assert asked == {
        "TableArn": "${LedgerTable.Arn}",
        "S3Bucket": "${LedgerArchive}",
        "ExportFormat": "DYNAMODB_JSON",
    }
    ledger = resources("AWS::DynamoDB::Table")["LedgerTable"]
    assert ledger["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"], "what an export is made from"
    assert target["RoleArn"] == {"Fn::GetAtt": ["LedgerArchiveRole", "Arn"]}
    allowed = {
        statement["Sid"]: statement for statement in statements(resources("AWS::IAM::Role")["LedgerArchiveRole"])
    }
    assert allowed["Export"]["Resource"] == {"Fn::GetAtt": ["LedgerTable", "Arn"]}
    assert allowed["Write"]["Resource"] == {"Fn::Sub": "${LedgerArchive.Arn}/*"}
    assert translated()["Resources"]["LedgerArchive"]["DeletionPolicy"] == "Retain"
    assert all(resources("AWS::S3::Bucket")["LedgerArchive"]["PublicAccessBlockConfiguration"].values())


def test_limit_stores_are_compared_with_the_ledger_every_hour() -> None:
    assert schedules("ReconcilerFunction") == {"rate(1 hour)": None}


def test_alerts_are_delivered_every_minute_and_each_hour_is_looked_back_upon() -> None:
    assert schedules("AlertsFunction") == {
        "rate(1 minute)": None,
        "cron(5 * * * ? *)": json.dumps({"task": alerts.LOOK_BACK}),
    }


def test_alerts_go_from_the_bus_to_the_topic_and_nobody_else_publishes_there() -> None:
    rule = resources("AWS::Events::Rule")["AlertRule"]
    assert rule["EventPattern"] == {"source": [event_bus.SOURCE], "account": [{"Ref": "AWS::AccountId"}]}
    (target,) = rule["Targets"]
    assert (target["Arn"], target["InputPath"]) == ({"Ref": "AlertTopic"}, "$.detail")
    (policy,) = resources("AWS::SNS::TopicPolicy").values()
    (statement,) = policy["PolicyDocument"]["Statement"]
    assert statement["Principal"] == {"Service": "events.amazonaws.com"}
    assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": ["AlertRule", "Arn"]}}}
    assert "AlertSubscription" not in deployed()
    assert "AlertSubscription" in deployed(AlertEmail="ops@example.com")


def test_edits_of_both_tables_reach_the_publisher_but_its_own_do_not() -> None:
    mappings = resources("AWS::Lambda::EventSourceMapping")
    tables = [it["EventSourceArn"]["Fn::GetAtt"][0] for it in mappings.values()]
    assert sorted(tables) == ["KeysTable", "PolicyTable", "TenantsTable"]
    for mapping in mappings.values():
        assert mapping["StartingPosition"] == "TRIM_HORIZON"
        assert mapping["BisectBatchOnFunctionError"] is True
        assert mapping["MaximumRetryAttempts"] == streams.RETRIES
        assert mapping["DestinationConfig"]["OnFailure"]["Destination"] == {
            "Fn::GetAtt": ["PublisherDeadLetters", "Arn"]
        }
    (policy,) = (it for it in mappings.values() if it["EventSourceArn"]["Fn::GetAtt"][0] == "PolicyTable")
    (pattern,) = policy["FilterCriteria"]["Filters"]
    assert json.loads(pattern["Pattern"]) == {"dynamodb": {"Keys": {"id": {"S": [{"anything-but": ["snapshot"]}]}}}}
