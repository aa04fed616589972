#!/bin/sh
# Lambda's handler for the proxy: the Lambda Web Adapter's wrapper executes this in place of Python's runtime client.
# The adapter forwards one request at a time to this port once /healthz answers; stdout goes to the function's log group.
# There is no access log: API Gateway has one, and every line here is a line that the subscription filter reads.
cd "$LAMBDA_TASK_ROOT" || exit 1
exec python3 -m functions.proxy "${AWS_LWA_PORT:-8080}"
