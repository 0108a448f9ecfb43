"""The second argument of a Greengrass handler: what Greengrass V1's runtime for Python put there.

Field names are AWS Lambda's (developer guide, "AWS Lambda context object in Python");
`client_context.custom["subject"]` is the topic the event came on, as in Greengrass V1.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any

# A long-lived function of Greengrass V1 has no time limit.
_NO_LIMIT_MS = 2**31 - 1


@dataclass(slots=True)
class MobileClient:
    """Only a phone would fill it in."""

    installation_id: str | None = None
    app_title: str | None = None
    app_version_name: str | None = None
    app_version_code: str | None = None
    app_package_name: str | None = None


@dataclass(slots=True)
class ClientContext:
    """`custom["subject"]`: the topic."""

    custom: dict[str, Any]
    env: dict[str, Any] = field(default_factory=dict)
    client: MobileClient = field(default_factory=MobileClient)


@dataclass(slots=True)
class CognitoIdentity:
    """No phone signs in here."""

    cognito_identity_id: str | None = None
    cognito_identity_pool_id: str | None = None


@dataclass(slots=True)
class LambdaContext:
    """One invocation's context."""

    function_name: str
    function_version: str
    invoked_function_arn: str
    memory_limit_in_mb: int
    client_context: ClientContext
    log_group_name: str
    log_stream_name: str
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    identity: CognitoIdentity = field(default_factory=CognitoIdentity)

    @property
    def function_arn(self) -> str:
        """Greengrass V1's own name for it."""
        return self.invoked_function_arn

    def get_remaining_time_in_millis(self) -> int:
        """A long-lived function has no limit: always the largest number."""
        return _NO_LIMIT_MS


def arn(device: str, function: str, version: str) -> str:
    """The name of a function, in the form in which Amazon names resources. The account is nobody's."""
    return f"arn:aws:lambda:local:000000000000:function:{device}-{function}:{version}"
