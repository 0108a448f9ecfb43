"""Fixtures of the fleet's commands."""

from tests.cli.fleet import bundle, marram_

__all__ = ["bundle", "marram_"]
