"""The table of commands: under which name each is found, and what the overview says about it.

A command's module is imported when the command is used, not before.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tiffin.cli.command import Command

Entry = tuple[str, str, str]
"""Module (below tiffin.cli), name of the Command in it, the line of the overview."""

CONTAINER: dict[str, Entry] = {
    "attach": ("run", "ATTACH", "Connect this terminal to a running container"),
    "commit": ("containers", "COMMIT", "Make an image out of what a container changed"),
    "cp": ("copying", "CP", "Copy files between a container and this machine"),
    "create": ("run", "CREATE", "Create a container without starting it"),
    "diff": ("containers", "DIFF", "Show what a container changed in its file system"),
    "exec": ("execution", "EXEC", "Run a command in a running container"),
    "export": ("archives", "EXPORT", "Write a container's file system as a tar"),
    "inspect": ("inspection", "CONTAINER_INSPECT", "Show everything about containers"),
    "kill": ("containers", "KILL", "Send a signal to containers"),
    "logs": ("logs", "LOGS", "Show the output of a container"),
    "ls": ("container_list", "PS", "List containers"),
    "pause": ("containers", "PAUSE", "Freeze all processes of containers"),
    "port": ("containers", "PORT", "Show the ports of a container"),
    "prune": ("containers", "PRUNE", "Remove all stopped containers"),
    "rename": ("containers", "RENAME", "Give a container another name"),
    "restart": ("containers", "RESTART", "Stop and start containers"),
    "rm": ("containers", "RM", "Remove containers"),
    "run": ("run", "RUN", "Create a container from an image and start it"),
    "start": ("run", "START", "Start stopped containers"),
    "stats": ("stats", "STATS", "Show what containers use of the machine"),
    "stop": ("containers", "STOP", "Stop running containers"),
    "top": ("containers", "TOP", "Show the processes of a container"),
    "unpause": ("containers", "UNPAUSE", "Let frozen containers go on"),
    "update": ("containers", "UPDATE", "Change the limits of containers"),
    "wait": ("containers", "WAIT", "Wait until containers stop, print their exit codes"),
}

IMAGE: dict[str, Entry] = {
    "build": ("build", "BUILD", "Build an image from a Dockerfile"),
    "copy": ("image_copying", "COPY", "Copy an image between registries, layouts and archives"),
    "history": ("images", "HISTORY", "Show how an image came to be"),
    "import": ("archives", "IMPORT", "Make an image out of a tar of a file system"),
    "inspect": ("inspection", "IMAGE_INSPECT", "Show everything about images"),
    "load": ("archives", "LOAD", "Load images from an archive"),
    "ls": ("image_list", "IMAGES", "List images"),
    "pack": ("packing", "PACK", "Make an image out of programs of this machine"),
    "prune": ("images", "PRUNE", "Remove unused images"),
    "pull": ("registries", "PULL", "Bring an image from a registry"),
    "push": ("registries", "PUSH", "Store an image in a registry"),
    "rm": ("images", "RMI", "Remove images"),
    "save": ("archives", "SAVE", "Write images to an archive"),
    "tag": ("images", "TAG", "Give an image another name"),
}

SYSTEM: dict[str, Entry] = {
    "df": ("disk_usage", "DF", "Show what takes room on the disk"),
    "info": ("system", "INFO", "Show how the engine is set up"),
    "prune": ("system", "PRUNE", "Remove everything that is not in use"),
    "shutdown": ("system", "SHUTDOWN", "Stop the daemon and the keeper"),
}

NETWORK: dict[str, Entry] = {
    "connect": ("networks", "CONNECT", "Put a container into a network"),
    "create": ("networks", "CREATE", "Create a network"),
    "disconnect": ("networks", "DISCONNECT", "Take a container out of a network"),
    "inspect": ("inspection", "NETWORK_INSPECT", "Show everything about networks"),
    "ls": ("networks", "LS", "List networks"),
    "prune": ("networks", "PRUNE", "Remove networks that no container is in"),
    "rm": ("networks", "RM", "Remove networks"),
}

VOLUME: dict[str, Entry] = {
    "create": ("volumes", "CREATE", "Create a volume"),
    "inspect": ("inspection", "VOLUME_INSPECT", "Show everything about volumes"),
    "ls": ("volumes", "LS", "List volumes"),
    "prune": ("volumes", "PRUNE", "Remove unused volumes"),
    "rm": ("volumes", "RM", "Remove volumes"),
    "update": ("volumes", "UPDATE", "Change a volume of a cluster"),
}

BUILDER: dict[str, Entry] = {
    "build": IMAGE["build"],
    "gc": ("build_cache", "COLLECT", "Bring the build cache down to its limit"),
    "prune": ("build_cache", "PRUNE", "Remove the build cache"),
    "why": ("build_cache", "WHY", "Say why steps were not taken from the cache"),
}

MANIFEST: dict[str, Entry] = {
    "annotate": ("image_copying", "MANIFEST_ANNOTATE", "Say what platform a manifest is for"),
    "create": ("image_copying", "MANIFEST_CREATE", "Begin a list of manifests"),
    "inspect": ("image_copying", "MANIFEST_INSPECT", "Show a manifest of a registry"),
    "push": ("image_copying", "MANIFEST_PUSH", "Store a list in its registry"),
    "rm": ("image_copying", "MANIFEST_RM", "Forget lists that were not pushed"),
}

REGISTRY: dict[str, Entry] = {
    "gc": ("registry", "REGISTRY_GC", "Remove what no image of a registry needs"),
    "serve": ("registry", "REGISTRY_SERVE", "Run a registry in the foreground"),
    "stats": ("registry", "REGISTRY_STATS", "Show what sharing layers saves in a registry"),
}

STORAGE: dict[str, Entry] = {
    "benchmark": ("storage", "BENCHMARK", "Measure the storage drivers on this machine's disk"),
    "check": ("storage", "CHECK", "Compare every file of every layer with what it should be"),
    "migrate": ("storage", "MIGRATE", "Move everything to another storage driver"),
}

GROUPS: dict[str, tuple[str, dict[str, Entry]]] = {
    "builder": ("Manage builds", BUILDER),
    "container": ("Manage containers", CONTAINER),
    "image": ("Manage images", IMAGE),
    "manifest": ("Manage lists of manifests in registries", MANIFEST),
    "network": ("Manage networks", NETWORK),
    "registry": ("Run a registry", REGISTRY),
    "storage": ("Manage storage drivers", STORAGE),
    "system": ("Manage the engine", SYSTEM),
    "volume": ("Manage volumes", VOLUME),
}

COMMON = ("run", "exec", "ps", "build", "images", "version", "info")
"""The commands that the overview lists first."""

TOP: dict[str, Entry] = {
    **{name: CONTAINER[name] for name in CONTAINER if name not in ("ls", "prune", "inspect")},
    "build": IMAGE["build"],
    "history": IMAGE["history"],
    "images": IMAGE["ls"],
    "import": IMAGE["import"],
    "info": SYSTEM["info"],
    "inspect": ("inspection", "INSPECT", "Show everything about containers, images or volumes"),
    "load": IMAGE["load"],
    "login": ("registries", "LOGIN", "Log in to a registry"),
    "logout": ("registries", "LOGOUT", "Log out from a registry"),
    "ps": CONTAINER["ls"],
    "pull": IMAGE["pull"],
    "push": IMAGE["push"],
    "rmi": IMAGE["rm"],
    "save": IMAGE["save"],
    "search": ("registries", "SEARCH", "Search a registry for images"),
    "serve": ("system", "SERVE", "Run the daemon in the foreground"),
    "tag": IMAGE["tag"],
    "version": ("system", "VERSION", "Show the versions of client and daemon"),
}

ALIASES: dict[str, dict[str, str]] = {
    "container": {"list": "ls", "ps": "ls", "remove": "rm"},
    "image": {"list": "ls", "remove": "rm"},
    "network": {"list": "ls", "remove": "rm"},
    "volume": {"list": "ls", "remove": "rm"},
}


def load(entry: Entry) -> Command:
    """Imports the module of a command and returns the command."""
    from importlib import import_module

    module, name, _ = entry
    command: Command = getattr(import_module(f"tiffin.cli.{module}"), name)
    return command


def overview() -> str:
    """The help text of ``tiffin`` itself."""
    width = max(len(name) for name in (*TOP, *GROUPS)) + 3

    def rows(names: tuple[str, ...] | list[str]) -> list[str]:
        return [f"  {name:<{width}}{TOP[name][2]}" for name in names]

    groups = [f"  {name:<{width}}{short}" for name, (short, _) in GROUPS.items()]
    others = sorted(name for name in TOP if name not in COMMON)
    return "\n".join(
        (
            "Usage:  tiffin [OPTIONS] COMMAND",
            "",
            "A container engine: images in layers, containers on top",
            "",
            "Common Commands:",
            *rows(COMMON),
            "",
            "Management Commands:",
            *groups,
            "",
            "Commands:",
            *rows(others),
            "",
            "Global Options:",
            "  -H, --host string   Talk to the daemon at this socket (unix:///path or",
            "                      tcp://host:port); also TIFFIN_HOST",
            "      --root string   The engine root to work in, by default /var/lib/tiffin;",
            "                      also TIFFIN_ROOT. A daemon is started when none answers",
            "  -v, --version       Print the version and quit",
            "",
            "Run 'tiffin COMMAND --help' for more information on a command.",
            "",
        )
    )


def group_help(group: str) -> str:
    """The help text of a group of commands (``tiffin image``)."""
    short, table = GROUPS[group]
    width = max(len(name) for name in table) + 3
    return "\n".join(
        (
            f"Usage:  tiffin {group} COMMAND",
            "",
            short,
            "",
            "Commands:",
            *(f"  {name:<{width}}{entry[2]}" for name, entry in table.items()),
            "",
            f"Run 'tiffin {group} COMMAND --help' for more information on a command.",
            "",
        )
    )
