"""Registries: a client of any, a server of our own (OCI distribution specification 1.1)."""
