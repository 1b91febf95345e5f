"""The HTTP client of the Docker Engine API: where the daemon is, and how to speak with it.

The command line and the SDK share it. It imports next to nothing, since both start with it.
"""
