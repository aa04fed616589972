"""The proxy function's ASGI application, as it runs behind API Gateway and the Lambda Web Adapter.

Who calls comes from API Gateway's request context, which the adapter puts into a header and never lets a client set.
Outside Lambda that header could be forged, so this application refuses to start there: use `tollgate serve`.
"""

from tollgate.bootstrap import lambda_application

app = lambda_application()
