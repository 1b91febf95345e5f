"""The engine of one root."""


class Engine:
    """Everything under one engine root."""
