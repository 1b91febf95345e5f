"""The runtime: what a container is to be, how it will be made, and making it."""
