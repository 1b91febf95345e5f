"""The version of tiffin, and of the Docker Engine API that it speaks."""

__version__ = "0.1.0"

API_VERSION = "1.50"
MIN_API_VERSION = "1.24"
