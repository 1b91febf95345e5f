"""The kernel seam: system calls, mounts, namespaces, cgroups, capabilities."""
