"""The `secretsmanager` client: Marram carries no secrets to devices, and says so."""

from __future__ import annotations

from typing import Any


class SecretsManagerError(Exception):
    """There is no secret here."""


class Client:
    """Knows no secret."""

    def get_secret_value(self, **kwargs: Any) -> dict[str, Any]:
        """Raises SecretsManagerError with what to do instead."""
        raise SecretsManagerError(
            f"no secret {kwargs.get('SecretId', '')!r} on this device: Marram carries no secrets. Read it from the "
            "environment of the agent, or from a file that only this device has."
        )
