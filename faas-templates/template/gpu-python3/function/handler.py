def load():
    """Runs once, before the first request: put the model onto the GPU here. What it returns is `context.model`."""


def handle(event, context):
    """Answers a request: with a dict of statusCode, headers and body, or with a body alone (text, bytes, or JSON)."""
    return {"statusCode": 200, "body": "Hello from gpu-python3"}
