"""Sizes that the issue promises."""

PORTS = 50
RULES = 10
