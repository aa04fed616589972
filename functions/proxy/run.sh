#!/bin/sh
# Lambda's handler for the proxy: the Lambda Web Adapter's wrapper executes this in place of Python's runtime client.
# The adapter forwards one request at a time to this port once /healthz answers; stdout goes to the function's log group.
# The access log is off: API Gateway has one, and every line here is a line that the subscription filter reads.
cd "$LAMBDA_TASK_ROOT" || exit 1
exec python3 -m uvicorn functions.proxy.app:app --host 127.0.0.1 --port "${AWS_LWA_PORT:-8080}" \
    --loop uvloop --http httptools --ws none --lifespan on --no-access-log --no-server-header --no-date-header \
    --no-proxy-headers --log-level warning
