"""What programs of the host need besides their own file (see ``pack``).

For every ELF file the shared libraries are found as the loader would; for a script its interpreter
is. What can't be seen in a file is known here for a few families of programs: Python, Perl, GCC,
BusyBox.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Sequence
from typing import Any

from tiffin.errors import NotFound
from tiffin.image.elf import Binary, Loader
from tiffin.image.rootfs import Rootfs

__all__ = ["SEARCH_PATH", "Packer"]

SEARCH_PATH = (
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
)
"""Where a container of the image looks for programs."""

_LINK_DIRECTORY = "/usr/local/bin"
# What programs are asked with: nothing that changes their answers (PYTHONPATH, PERL5LIB, CPATH),
# but what says which version a shim stands for.
_PASSED_ON = re.compile(r"HOME|PATH|(PYENV|ASDF|MISE)_\w+")
_ANSWER_SECONDS = 30
_LOCALE = "/usr/lib/locale/C.utf8"
_SHELLS = ("dash", "bash", "busybox")
_TERMINALS = (
    *("ansi", "dumb", "linux", "screen", "screen-256color", "tmux", "tmux-256color"),
    *("vt100", "vt220", "xterm", "xterm-256color"),
)
_TERMINFO = ("/etc/terminfo", "/lib/terminfo", "/usr/share/terminfo", "/usr/lib/terminfo")

_PYTHON = re.compile(r"python(3(\.\d+)?)?")
_PERL = re.compile(r"perl5?(\.\d+)*")
_COMPILER = re.compile(r"([\w.]+-)*(gcc|cc|g\+\+|c\+\+|c89|c99)(-\d+)?")

_PYTHON_QUESTION = """
import json, os, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "libraries": [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")],
}))
"""
# Directories and files of the standard library that only its developers or a desktop miss, and
# what other packages have put there.
_PYTHON_LEFT_OUT = frozenset(
    {
        *("__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip"),
        *("turtle.py", "site-packages", "dist-packages", "EXTERNALLY-MANAGED"),
    }
)
_PERL_QUESTION = 'use Config; print join "\\n", @Config{qw(privlibexp archlibexp)}, @INC'
# In GCC's own directory: the other languages' compilers, link-time optimisation, sanitizers.
_GCC_LEFT_OUT = re.compile(
    r"plugin|lto1|cc1plus|cc1obj\w*|f951|gnat1|go1|d21|gm2|g\+\+-mapper-server"
    r"|lib(a|t|l|ub|hwa)san.*|libsanitizer.*"
)
_CPLUSPLUS_LIBRARIES = re.compile(r"lib(std|sup)c\+\+.*")


class Packer:
    """Adds programs to a root file system. First the programs, then a shell, then libraries."""

    def __init__(self, rootfs: Rootfs) -> None:
        self.warnings: list[str] = []
        self.environment: list[str] = []
        self._rootfs = rootfs
        self._loader = Loader()
        self._added: set[str] = set()
        self._strict: set[str] = set()
        self._checked: set[str] = set()
        self._name_services: set[tuple[str, int]] = set()
        self._busybox: str | None = None

    def add_program(self, name: str, needed_by: str | None = None) -> str:
        """Adds a program by name or absolute path, and what its family is known to need.

        Returns its path in the image. Raises NotFound if the host does not have it.
        """
        family = os.path.basename(name)
        if _PYTHON.fullmatch(family):
            return self._add_python(name)
        path = name if name.startswith("/") and _is_program(name) else _find(name)
        if path is None:
            reason = f", which {needed_by} needs" if needed_by else ""
            raise NotFound(
                f"{name}{reason}: no such program on this host: install the package that has it,"
                " or give its absolute path"
            )
        if path in self._added:
            return path
        self._added.add(path)
        real = self._rootfs.add(path)
        self._strict.add(real)
        if not name.startswith("/"):
            self._link(name, path)
        self._add_interpreter(real)
        if family == "busybox":
            self._busybox = path
        elif _PERL.fullmatch(family):
            self._add_perl(path)
        elif _COMPILER.fullmatch(family) and not _is_script(real):
            self._add_compiler(path)
            # The name that make knows it by.
            usual = _find("c++" if "+" in family else "cc")
            if usual is not None and os.path.realpath(usual) == real:
                self._rootfs.add(usual)
        return path

    def add_shell(self) -> None:
        """Makes sure of ``/bin/sh``; BusyBox gets the links for all it can do besides."""
        if self._busybox is not None:
            self._add_applets(self._busybox)
        directory = self._rootfs.ensure_directory("/bin")
        if f"{directory}/sh" in self._rootfs:
            return
        if _is_program("/bin/sh"):
            self.add_program("/bin/sh")
            return
        shell = next(filter(None, map(_find, _SHELLS)), None)
        if shell is None:
            raise NotFound(f"there is no shell on this host: install one of {', '.join(_SHELLS)}")
        self._rootfs.make_symlink("/bin/sh", self.add_program(shell))

    def add_libraries(self) -> None:
        """Adds the libraries of all ELF files that are there.

        Raises NotFound if a program lacks one; for other files a warning is noted.
        """
        for path in self._rootfs.fresh_files():
            if path in self._checked:
                continue
            self._checked.add(path)
            binary = self._binary(path)
            if binary is not None:
                self._add_closure(binary)

    def _binary(self, path: str) -> Binary | None:
        try:
            return self._loader.binary(path)
        except PermissionError:
            # Reading it to write it will say so.
            return None

    def _add_closure(self, binary: Binary) -> None:
        if binary.interpreter is not None:
            self._rootfs.add(binary.interpreter)
        closure = self._loader.closure(binary)
        for name, by in closure.missing:
            sentence = f"{name}, which {by} needs, is not on this host"
            if binary.path in self._strict:
                raise NotFound(f"{sentence}: install the package that has it")
            self.warnings.append(sentence)
        for library in closure.libraries:
            self._add_library(binary, library.name, library.path, library.by_cache)
            if library.name.startswith(("libtinfo", "libncurses")):
                self._add_terminals()
            if library.name == "libc.so.6":
                self._add_name_services(binary)

    def _add_library(self, binary: Binary, name: str, path: str, by_cache: bool) -> None:
        # Its own libraries have been found through the program, whose directories count.
        self._checked.add(self._rootfs.add(path))
        if by_cache:
            # The image has no loader's cache: a link where the loader looks anyway.
            directory = self._loader.system_directory(binary)
            self._rootfs.make_symlink(f"{directory}/{name}", path)

    def _add_name_services(self, binary: Binary) -> None:
        """What glibc opens by itself: name services, what ends threads, and C.UTF-8."""
        if binary.machine in self._name_services:
            return
        self._name_services.add(binary.machine)
        for name in ("libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1"):
            if library := self._loader.find(name, binary):
                self._rootfs.add(library.path)
        if os.path.isdir(_LOCALE):
            self._rootfs.add_tree(_LOCALE)

    def _add_terminals(self) -> None:
        for directory in _TERMINFO:
            for terminal in _TERMINALS:
                path = f"{directory}/{terminal[0]}/{terminal}"
                if os.path.isfile(path):
                    self._rootfs.add(path)

    def _add_interpreter(self, path: str) -> None:
        """What runs a script; a file that is neither a script nor ELF is the shell's."""
        with open(path, "rb") as file:
            line = file.read(256).partition(b"\n")[0]
        if not line.startswith(b"#!"):
            return
        words = os.fsdecode(line[2:]).split()
        if not words:
            return
        self.add_program(words[0], path)
        if os.path.basename(words[0]) == "env":
            named = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
            if named:
                self.add_program(named[0], path)

    def _link(self, name: str, path: str) -> None:
        """Makes a program that is elsewhere one that is found by its name."""
        if os.path.dirname(path) not in SEARCH_PATH:
            self._rootfs.make_symlink(f"{_LINK_DIRECTORY}/{name}", path)

    # -- families

    def _add_python(self, name: str) -> str:
        """The interpreter that a name stands for, behind any shim, and its standard library."""
        answer = _real_python(name)
        executable, version = answer["executable"], answer["version"]
        directory, own_name = os.path.split(executable)
        names = ["python3", *(["python"] if os.path.basename(name) == "python" else [])]
        if executable not in self._added:
            self._added.add(executable)
            self._strict.add(self._rootfs.add(executable))
            for library in dict.fromkeys(answer["libraries"]):
                self._rootfs.add_tree(library, _is_left_out_of_python)
            # The standard library comes without compiled files: writing them would fill the
            # layer of every container.
            self.environment.append("PYTHONDONTWRITEBYTECODE=1")
            names.insert(0, f"python{version}")
        for link in names:
            target = "python3" if link == "python" else own_name
            if os.path.realpath(f"{directory}/{link}") == executable:
                self._rootfs.add(f"{directory}/{link}")
            else:
                self._rootfs.make_symlink(f"{directory}/{link}", target)
            self._link(link, f"{directory}/{link}")
        if name.startswith("/") and name not in self._rootfs:
            # A script asks for it at this place.
            self._rootfs.make_symlink(name, executable)
        return name if name.startswith("/") else f"{directory}/{names[-1]}"

    def _add_perl(self, path: str) -> None:
        # Debian's smallest Perl has a directory of its own among those it searches.
        private, architecture, *searched = _ask(path, "-e", _PERL_QUESTION).splitlines()
        base = [line for line in searched if os.path.basename(line) == "perl-base"]
        for line in filter(os.path.isdir, dict.fromkeys([private, architecture, *base])):
            self._rootfs.add_tree(line, lambda below: below.endswith(".pod"))

    def _add_applets(self, busybox: str) -> None:
        directory = self._rootfs.ensure_directory("/bin")
        for applet in _ask(busybox, "--list").split():
            taken = (f"{self._rootfs.ensure_directory(each)}/{applet}" for each in SEARCH_PATH)
            if not any(path in self._rootfs for path in taken):
                self._rootfs.make_symlink(f"{directory}/{applet}", busybox)

    def _add_compiler(self, path: str) -> None:
        """The parts that the driver runs, its own libraries, and the C library's to build with."""
        cplusplus = "+" in os.path.basename(path)
        parts = ["cc1", "collect2", "lto-wrapper", "as", "ld", *(["cc1plus"] if cplusplus else [])]
        for part in parts:
            found = _ask(path, f"-print-prog-name={part}").strip()
            if os.path.isabs(found):
                self._strict.add(self._rootfs.add(found))
            else:
                self.add_program(part, path)
        plugin = _ask(path, "-print-file-name=liblto_plugin.so").strip()
        if os.path.isabs(plugin):
            self._rootfs.add(plugin)
        own = os.path.dirname(os.path.realpath(_ask(path, "-print-libgcc-file-name").strip()))

        def left_out(below: str) -> bool:
            name = os.path.basename(below)
            if not cplusplus and _CPLUSPLUS_LIBRARIES.fullmatch(name):
                return True
            return bool(_GCC_LEFT_OUT.fullmatch(name)) and below not in self._rootfs

        self._rootfs.add_tree(own, left_out)
        start = os.path.realpath(_ask(path, "-print-file-name=crt1.o").strip())
        if not os.path.isfile(start):
            self.warnings.append(f"{path} has no C library to build with on this host")
            return
        standard = f"libstdc++-{os.path.basename(own)}-dev"
        files = _package_files(start, [standard] if cplusplus else [])
        if files is None:
            # No package manager that tells what belongs to the C library: all there is.
            self._rootfs.add_tree("/usr/include")
            folder = os.path.dirname(start)
            files = [f"{folder}/{name}" for name in os.listdir(folder) if _is_for_linking(name)]
        for file in sorted(files):
            if os.path.isfile(file):
                self._rootfs.add(file)


def _real_python(name: str) -> dict[str, Any]:
    """What the interpreter says of itself. Raises NotFound if there is none."""
    if name.startswith("/"):
        candidates: list[str | None] = [name]
    else:
        exact = name if name != "python" else "python3"
        candidates = [f"/usr/bin/{exact}", *_find_all(exact), *_find_all(name)]
    for candidate in candidates:
        if candidate is None or not _is_program(candidate):
            continue
        try:
            answer = json.loads(_ask(candidate, "-I", "-S", "-c", _PYTHON_QUESTION))
        except (NotFound, ValueError):
            # A shim of a version that is not installed, or Python 2.
            continue
        if isinstance(answer, dict) and os.path.isfile(answer["executable"]):
            return answer
    raise NotFound(
        f"{name}: no such Python on this host: install it (on Debian: apt install python3), or give"
        " its absolute path"
    )


def _is_left_out_of_python(path: str) -> bool:
    name = os.path.basename(path)
    return (
        name in _PYTHON_LEFT_OUT
        or name.endswith((".pyc", ".a"))
        or name.startswith(("_tkinter.", "config-3"))
    )


def _is_for_linking(name: str) -> bool:
    return name.endswith((".o", "_nonshared.a")) or bool(
        re.fullmatch(r"lib(c|m|pthread|dl|rt|util|crypt|resolv)\.(so|a)", name)
    )


def _package_files(path: str, more: Sequence[str]) -> list[str] | None:
    """The files of the package of ``path``, the kernel's headers and others; None off Debian."""
    try:
        owner = _ask("/usr/bin/dpkg-query", "-S", path).partition(":")[0]
        wanted = [owner, "linux-libc-dev", "libcrypt-dev", *more]
        listed = subprocess.run(
            ["/usr/bin/dpkg-query", "-L", *wanted],
            capture_output=True,
            text=True,
            env=_environment(),
        ).stdout
    except NotFound:
        return None
    return [line for line in listed.splitlines() if line.startswith(("/usr/include/", "/usr/lib"))]


def _find(name: str) -> str | None:
    return next(iter(_find_all(name)), None)


def _find_all(name: str) -> list[str]:
    """Where the host has programs of this name: where an image looks, then in PATH."""
    directories = [*SEARCH_PATH[2:], *SEARCH_PATH[:2], *os.environ.get("PATH", "").split(":")]
    absolute = (each for each in directories if each.startswith("/"))
    return [
        path
        for each in dict.fromkeys(absolute)
        if "/" not in name and name and _is_program(path := f"{each.rstrip('/')}/{name}")
    ]


def _is_program(path: str) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)


def _is_script(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def _ask(*command: str) -> str:
    """What a program of the host prints. Raises NotFound if it fails."""
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            timeout=_ANSWER_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFound(f"{command[0]} can't be asked what it needs: {error}") from error
    if ran.returncode:
        reason = ran.stderr.strip() or f"exit code {ran.returncode}"
        raise NotFound(f"{command[0]} does not say what it needs: {reason}")
    return ran.stdout


def _environment() -> dict[str, str]:
    passed_on = {name: value for name, value in os.environ.items() if _PASSED_ON.fullmatch(name)}
    return {"PATH": ":".join(SEARCH_PATH), **passed_on, "LC_ALL": "C"}
