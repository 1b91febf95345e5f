"""The flags of ``run`` and ``create``: the whole description of a container."""

from __future__ import annotations

from tiffin.cli import values
from tiffin.cli.flags import BOOL, INT, LIST, STRING, Flag
from tiffin.cli.mounts import MOUNTS

IDENTITY = (
    Flag("name", STRING, "Name of the container"),
    Flag("hostname", STRING, "Host name inside the container", short="h"),
    Flag("domainname", STRING, "Domain name inside the container"),
    Flag("label", values.LABELS, "Attach a label (name=value)", short="l"),
    Flag("label-file", LIST, "Read labels from a file, one a line"),
    Flag("cidfile", STRING, "Write the container's ID to this file"),
)

PROCESS = (
    Flag("entrypoint", STRING, "Program to run instead of the image's entry point"),
    Flag("env", values.ENVIRONMENT, "Set a variable (NAME=value, or NAME from here)", short="e"),
    Flag("env-file", LIST, "Read variables from a file, one a line"),
    Flag("user", STRING, "User to run as, by name or number (user[:group])", short="u"),
    Flag("group-add", LIST, "Join one more group"),
    Flag("workdir", STRING, "Directory to start in", short="w"),
    Flag("interactive", BOOL, "Keep stdin open", short="i"),
    Flag("tty", BOOL, "Give the container a terminal", short="t"),
    Flag("attach", values.STREAMS, "Connect only this stream (stdin, stdout, stderr)", short="a"),
    Flag("init", BOOL, "Run an init that passes signals on and reaps processes"),
    Flag("stop-signal", STRING, "Signal that stops the container"),
    Flag("stop-timeout", INT, "Seconds to wait for a stop before killing"),
    Flag("restart", STRING, "When to start again after an exit", default="no"),
    Flag("rm", BOOL, "Remove the container and its anonymous volumes when it exits"),
)

FILES = (
    Flag("volume", LIST, "Mount a volume or a path (source:target[:options])", short="v"),
    Flag("mount", MOUNTS, "Mount something, described by fields (type=…,source=…,target=…)"),
    Flag("tmpfs", LIST, "Mount a tmpfs (target[:options])"),
    Flag("volumes-from", LIST, "Mount the volumes of another container"),
    Flag("volume-driver", STRING, "Driver for volumes that are made for this container"),
    Flag("read-only", BOOL, "Make the container's root file system read-only"),
    Flag("shm-size", values.BYTES, "Size of /dev/shm"),
    Flag("device", LIST, "Give a device of the host (path[:path][:rwm])"),
    Flag("device-cgroup-rule", LIST, "Add a rule to the devices that are allowed"),
    Flag("storage-opt", LIST, "Option for the storage driver"),
)

NETWORK = (
    Flag("network", LIST, "Connect to this network (none, host, …)"),
    Flag("net", LIST, "Same as --network"),
    Flag("publish", LIST, "Publish a port ([[address:]port:]port[/protocol])", short="p"),
    Flag("publish-all", BOOL, "Publish all exposed ports at free ports", short="P"),
    Flag("expose", LIST, "Expose a port or a range of ports"),
    Flag("network-alias", LIST, "One more name of the container in its network"),
    Flag("ip", STRING, "IPv4 address"),
    Flag("ip6", STRING, "IPv6 address"),
    Flag("link-local-ip", LIST, "Further address of the interface, link-local"),
    Flag("mac-address", STRING, "MAC address"),
    Flag("link", LIST, "Link to another container"),
    Flag("add-host", values.HOSTS, "Add a line to /etc/hosts (name:address)"),
    Flag("dns", values.ADDRESSES, "Name server to ask"),
    Flag("dns-option", LIST, "Option for resolv.conf"),
    Flag("dns-opt", LIST, "Same as --dns-option"),
    Flag("dns-search", LIST, "Domain to search"),
)

ISOLATION = (
    Flag("privileged", BOOL, "Give all capabilities and devices"),
    Flag("cap-add", LIST, "Add a capability"),
    Flag("cap-drop", LIST, "Drop a capability"),
    Flag("security-opt", LIST, "Security option (no-new-privileges, seccomp=…)"),
    Flag("sysctl", values.SYSCTLS, "Set a kernel parameter of the container's namespaces"),
    Flag("pid", STRING, "PID namespace (host, container:NAME)"),
    Flag("ipc", STRING, "IPC namespace (private, shareable, host, none, container:NAME)"),
    Flag("uts", STRING, "UTS namespace (host)"),
    Flag("userns", STRING, "User namespace (host, private)"),
    Flag("cgroupns", STRING, "Cgroup namespace (host, private)"),
    Flag("runtime", STRING, "Runtime to use"),
    Flag("platform", STRING, "Platform of the image (os/architecture)"),
)

LIMITS = (
    Flag("memory", values.BYTES, "Memory limit", short="m"),
    Flag("memory-reservation", values.BYTES, "Soft limit of memory"),
    Flag("memory-swap", values.SWAP, "Limit of memory and swap together, -1 for none"),
    Flag("memory-swappiness", INT, "How readily memory is swapped (0 to 100)", default=-1),
    Flag("oom-kill-disable", BOOL, "Never kill for want of memory"),
    Flag("oom-score-adj", INT, "How readily to be killed for want of memory (-1000 to 1000)"),
    Flag("cpus", values.DECIMAL, "Number of CPUs"),
    Flag("cpu-shares", INT, "Share of the CPUs, relative to others", short="c"),
    Flag("cpu-period", INT, "Period of the CPU quota in microseconds"),
    Flag("cpu-quota", INT, "CPU time in each period in microseconds"),
    Flag("cpu-rt-period", INT, "Period of real-time CPU in microseconds"),
    Flag("cpu-rt-runtime", INT, "Real-time CPU in each period in microseconds"),
    Flag("cpuset-cpus", STRING, "CPUs to run on (0-3, 0,1)"),
    Flag("cpuset-mems", STRING, "Memory nodes to use (0-3, 0,1)"),
    Flag("pids-limit", INT, "Number of processes, -1 for no limit"),
    Flag("ulimit", values.ULIMITS, "Limit of each process (name=soft[:hard])"),
    Flag("cgroup-parent", STRING, "Parent of the container's cgroup"),
    Flag("blkio-weight", INT, "Share of block I/O (10 to 1000)"),
    Flag("blkio-weight-device", values.WEIGHTS, "Share of a device's I/O (path:weight)"),
    Flag("device-read-bps", values.RATES, "Bytes a second read from a device (path:rate)"),
    Flag("device-write-bps", values.RATES, "Bytes a second written to a device (path:rate)"),
    Flag("device-read-iops", values.OPERATIONS, "Reads a second from a device (path:rate)"),
    Flag("device-write-iops", values.OPERATIONS, "Writes a second to a device (path:rate)"),
)

LOGGING = (
    Flag("log-driver", STRING, "Where output is kept (json-file, none)"),
    Flag("log-opt", LIST, "Option for the log driver (name=value)"),
)

HEALTH = (
    Flag("health-cmd", STRING, "Command that checks health"),
    Flag("health-interval", values.DURATION, "Time between two checks"),
    Flag("health-timeout", values.DURATION, "Time that one check may take"),
    Flag("health-retries", INT, "Failures in a row that mean unhealthy"),
    Flag("health-start-period", values.DURATION, "Time in which failures do not count"),
    Flag("health-start-interval", values.DURATION, "Time between checks in the start period"),
    Flag("no-healthcheck", BOOL, "Never check health, whatever the image says"),
)

CREATE_FLAGS = (
    *IDENTITY,
    *PROCESS,
    *FILES,
    *NETWORK,
    *ISOLATION,
    *LIMITS,
    *LOGGING,
    *HEALTH,
    Flag("pull", STRING, 'Get the image first ("always", "missing", "never")', default="missing"),
    Flag("quiet", BOOL, "Say nothing while the image is got", short="q"),
)

RUN_FLAGS = (
    *CREATE_FLAGS,
    Flag("detach", BOOL, "Run in the background and print the container's ID", short="d"),
    Flag("detach-keys", STRING, "Keys that detach (ctrl-p,ctrl-q)"),
    Flag("sig-proxy", BOOL, "Pass signals on to the container", default=True),
)
