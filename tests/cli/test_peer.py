"""The same words to docker and to tiffin, both talking to one dockerd: the same answers."""

from __future__ import annotations

import re
import shlex
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.programs import Docker, Pair, renamed

pytestmark = [pytest.mark.peer, pytest.mark.root]


@pytest.fixture(scope="module")
def filled(dockerd: str) -> Iterator[None]:
    """A dockerd with something to list: containers that run and don't, images, a volume."""
    docker = Docker(dockerd)
    for words in (
        "run -d --name runs --network none -e A=b --label x=y --label z=1 busybox sleep 10000",
        "run --name ended --network none busybox sh -c 'echo out; echo err >&2; exit 3'",
        "create --name made --network none -v vol:/v -p 80:8080 busybox true",
        "tag busybox other:1",
        "volume create vol",
        "exec runs sh -c 'echo new > /new; rm /etc/group; echo more >> /etc/passwd'",
    ):
        docker(*shlex.split(words))
    yield
    docker("rm", "-f", "runs", "ended", "made")
    docker("rmi", "other:1")
    docker("volume", "rm", "vol")


SAME = [
    "ps",
    "ps -a",
    "ps -as --no-trunc",
    "ps -aq --no-trunc",
    "ps -n 2",
    "ps -l",
    "ps -a -f name=runs -f status=running",
    "ps -f foo=bar",
    "ps -f foo",
    "ps --format {{.ID}}",
    "ps --format '{{.Names}}: {{.Label \"x\"}} {{.Labels}} {{.Mounts}}'",
    "ps -a --format 'table {{.Names}}\\t{{.Image}}\\t{{.LocalVolumes}}\\t{{.Networks}}'",
    "ps --format 'table {{.Names}} {{.Label \"x\"}} {{upper .Image}}'",
    "ps --format {{.Foo}}",
    "ps --format {{.ID",
    "ps x",
    "ps --foo",
    "container ls -aq",
    "container ls --all",
    "images",
    "images --digests",
    "images -q --no-trunc",
    "images --format json",
    "images --format '{{.Repository}}:{{.Tag}} {{.ID}} {{.Size}}'",
    "images busybox",
    "images nosuch",
    "image ls",
    "history busybox",
    "history --no-trunc -H=false busybox",
    "history --format json busybox",
    "history nosuch",
    "inspect runs",
    "inspect busybox",
    "inspect vol",
    "inspect nosuch runs -f {{.Name}}",
    "inspect runs -f {{.Foo}}",
    "inspect runs -f {{.State.Nope}}",
    "inspect runs -f json",
    "inspect runs -f '{{.State.Status}} {{.Config.Labels.x}} {{index .Config.Env 0}}'",
    "inspect runs -f '{{range .Config.Env}}{{println .}}{{end}}{{len .Config.Env}}'",
    "inspect runs -f '{{.Config.Labels}} {{.Args}} {{.State.Running}} {{.HostConfig.Memory}}'",
    "inspect runs -f '{{.Config.Labels.nope}}|{{index .Config.Labels \"nope\"}}'",
    "inspect --type image runs",
    "inspect",
    "image inspect nosuch",
    "container inspect nosuch",
    "volume inspect nosuch",
    "top runs",
    "top runs -o pid,comm",
    "top nosuch",
    "diff runs",
    "diff nosuch",
    "port made",
    "port runs 80",
    "logs ended",
    "logs --tail 1 ended",
    "logs -n 0 ended",
    "logs nosuch",
    "logs --since 1h ended",
    "logs --until 1h ended",
    "volume ls",
    "volume ls -q",
    "volume ls --format json",
    "system df --format '{{.Type}} {{.TotalCount}} {{.Active}} {{.Size}}'",
    "version -f {{.Server.Version}}",
    "info -f '{{.Driver}} {{.NCPU}}'",
    "wait ended",
    "wait nosuch ended",
    "kill ended",
    "stop nosuch ended",
    "pause ended",
    "unpause runs",
    "start nosuch",
    "rm nosuch runs",
    "rm -f nosuch",
    "rmi nosuch",
    "rmi -f nosuch",
    "tag nosuch x",
    "rename runs ended",
    "attach ended",
    "attach nosuch",
    "exec nosuch ls",
    "exec runs",
    "exec ended ls",
    "exec --foo runs ls",
    "exec runs sh -c 'echo out; echo err >&2; exit 4'",
    "exec -e A=b -w /tmp -u 1:2 runs sh -c 'echo $A; pwd; id -u; id -g'",
    "exec -it runs sh",
    "save nosuch",
    "save -o /nosuch/x busybox",
    "export nosuch",
    "load -i /nosuch",
    "import /nosuch",
    "commit nosuch",
    "cp nosuch:/x y",
    "cp a b",
    "run --network none --rm busybox sh -c 'echo out; exit 7'",
    "run --network none --rm -e A=b -w /tmp -u 1 busybox sh -c 'echo $A; pwd; id -u'",
    "run --network none --rm busybox nosuch",
    "run --network none --rm busybox /tmp",
    "run --pull never nosuch",
    "run -it busybox",
    "run -d -a stdout busybox",
    "run",
    "foo",
    "image foo",
    "--foo ps",
    "stats --no-stream --format '{{.Name}} {{.PIDs}} {{.NetIO}}' runs",
]


@pytest.mark.parametrize("words", SAME)
def test_both_answer_the_same(words: str, pair: Pair, filled: None) -> None:
    theirs, ours = pair.docker(*shlex.split(words)), pair.tiffin(*shlex.split(words))
    err = renamed(theirs.err)
    if words == "image foo":
        err = err.replace("Usage:  tiffin image\n", "Usage:  tiffin image COMMAND\n")
    said = [timeless(one.out) for one in (ours, theirs)]
    if words.startswith(UNORDERED):
        said = ["".join(sorted(line.rstrip(",") for line in text.splitlines())) for text in said]
    assert (said[0], ours.err, ours.code) == (said[1], err, theirs.code)


UNORDERED = ("images", "image ls", "inspect busybox", "diff ", "system df")
"""What lists the names of one image, or what a container changed: any order is docker's."""


def timeless(text: str) -> str:
    """Without what may tick over between two commands, and the blanks that it moves."""
    text = re.sub(r"Less than a second|\d+ seconds?|About a minute|\d+ minutes?", "T", text)
    return re.sub(r" +|-{2,}", " ", text)


def test_stdin_goes_to_the_container_and_ends_there(pair: Pair) -> None:
    data = bytes(range(256)) * 5000
    words = ["run", "--rm", "-i", "--network", "none", "busybox", "wc", "-c"]
    assert pair.tiffin(*words, stdin=data).out.split() == [str(len(data))]


def test_stdin_and_output_go_at_once(pair: Pair) -> None:
    """Much both ways: neither side may wait for the other to read."""
    data = b"0123456789abcde\n" * 200_000
    outcome = pair.tiffin("run", "--rm", "-i", "--network", "none", "busybox", "cat", stdin=data)
    assert outcome.code == 0
    assert outcome.out.encode() == data


def test_stdin_of_an_exec_goes_there_and_ends(pair: Pair, filled: None) -> None:
    data = b"line\n" * 100_000
    assert pair.tiffin("exec", "-i", "runs", "wc", "-l", stdin=data).out.split() == ["100000"]


def test_a_detached_run_prints_the_id(pair: Pair) -> None:
    done = pair.tiffin("run", "-d", "--network", "none", "busybox", "true")
    assert len(done.out.strip()) == 64
    assert pair.docker("wait", done.out.strip()).out == "0\n"
    assert pair.tiffin("rm", done.out.strip()).out == done.out


def test_a_run_with_rm_leaves_nothing(pair: Pair) -> None:
    pair.tiffin("run", "--rm", "--name", "gone", "--network", "none", "busybox", "true")
    assert "No such container" in pair.docker("container", "inspect", "gone").err


def test_start_attached_gives_output_and_exit_code(pair: Pair) -> None:
    pair.docker("create", "--name", "again", "--network", "none", "busybox", "sh", "-c",
                "echo out; exit 5")  # fmt: skip
    outcome = pair.tiffin("start", "-a", "again")
    assert (outcome.out, outcome.code) == ("out\n", 5)
    assert pair.tiffin("start", "again").out == "again\n"
    assert pair.tiffin("restart", "-t", "0", "again").out == "again\n"
    pair.tiffin("rm", "-f", "again")


def test_the_life_of_a_container(pair: Pair) -> None:
    created = pair.tiffin("create", "--name", "life", "--network", "none", "busybox", "sleep", "99")
    assert created.code == 0
    for words, state in (
        (("start", "life"), "running"),
        (("pause", "life"), "paused"),
        (("unpause", "life"), "running"),
        (("kill", "-s", "KILL", "life"), "exited"),
        (("start", "life"), "running"),
        (("stop", "-t", "0", "life"), "exited"),
        (("rename", "life", "after"), "exited"),
    ):
        assert pair.tiffin(*words).code == 0
        name = "after" if words[0] == "rename" else "life"
        if words[0] == "kill":
            assert pair.tiffin("wait", name).out == "137\n"
        assert pair.docker("inspect", "-f", "{{.State.Status}}", name).out == f"{state}\n"
    assert (
        pair.tiffin("update", "--memory", "64m", "--memory-swap", "64m", "after").out == "after\n"
    )
    assert pair.docker("inspect", "-f", "{{.HostConfig.Memory}}", "after").out == f"{64 << 20}\n"
    assert pair.tiffin("rm", "after").out == "after\n"


def test_images_make_the_round_trip(pair: Pair, tmp_path: Path) -> None:
    made = pair.tiffin("commit", "-m", "why", "-c", "ENV X=1", "runs", "round:1")
    if made.code:
        pair.docker("create", "--name", "source", "--network", "none", "busybox", "true")
        made = pair.tiffin("commit", "-m", "why", "-c", "ENV X=1", "source", "round:1")
        pair.docker("rm", "source")
    assert made.out.startswith("sha256:")
    assert pair.tiffin("save", "-o", "image.tar", "round:1").code == 0
    assert pair.tiffin("rmi", "round:1").out.startswith("Untagged: round:1\nDeleted: sha256:")
    assert pair.tiffin("load", "-i", "image.tar").out == "Loaded image: round:1\n"
    again = pair.tiffin("load", stdin=(tmp_path / "image.tar").read_bytes())
    assert again.out == "Loaded image: round:1\n"
    assert pair.docker("inspect", "-f", "{{.Id}}", "round:1").out == made.out
    pair.docker("rmi", "round:1")


def test_a_file_system_makes_the_round_trip(pair: Pair, tmp_path: Path) -> None:
    pair.docker("create", "--name", "source", "--network", "none", "busybox", "true")
    assert pair.tiffin("export", "-o", "root.tar", "source").code == 0
    with tarfile.open(tmp_path / "root.tar") as tar:
        assert "bin/busybox" in tar.getnames()
    done = pair.tiffin("import", "-m", "why", "-c", 'CMD ["ls"]', "root.tar", "rootfs:1")
    assert done.out.startswith("sha256:")
    shown = pair.docker("inspect", "-f", "{{.Config.Cmd}} {{.Comment}}", "rootfs:1").out
    assert shown == "[ls] why\n"
    pair.docker("rm", "source")
    pair.docker("rmi", "rootfs:1")


@pytest.fixture
def context(tmp_path: Path) -> Path:
    folder = tmp_path / "context"
    (folder / "sub").mkdir(parents=True)
    (folder / "Dockerfile").write_text(
        "FROM busybox AS base\nARG X=0\nLABEL from=file\nCOPY . /app\nRUN echo x=$X > /x\n"
        "FROM base\nCMD cat /x\n"
    )
    (folder / ".dockerignore").write_text("*.md\n!keep.md\nsub\n!sub/kept\n")
    for name in ("a.txt", "b.md", "keep.md", "sub/dropped", "sub/kept"):
        (folder / name).write_text(name)
    return folder


def test_a_folder_is_built_without_what_is_ignored(pair: Pair, context: Path) -> None:
    done = pair.tiffin("build", "-t", "built:1", "--build-arg", "X=1", "--iidfile", "id", "context")
    assert done.code == 0, done.err
    assert "Successfully tagged built:1" in done.out
    run = ["run", "--rm", "--network", "none", "built:1"]
    assert pair.docker(*run).out == "x=1\n"
    found = pair.docker(*run, "find", "/app", "-type", "f").out.split()
    assert sorted(found) == [
        f"/app/{name}" for name in (".dockerignore", "Dockerfile", "a.txt", "keep.md", "sub/kept")
    ]
    identifier = (context.parent / "id").read_text()
    assert pair.docker("inspect", "-f", "{{.Id}}", "built:1").out == f"{identifier}\n"
    quiet = pair.tiffin("build", "-q", "--build-arg", "X=1", "context")
    assert quiet.out == f"{identifier}\n"
    pair.docker("rmi", "built:1")


def test_a_build_takes_a_dockerfile_from_elsewhere(pair: Pair, context: Path) -> None:
    (context.parent / "other").write_text("FROM busybox\nCOPY a.txt /\n")
    assert pair.tiffin("build", "-q", "-f", "other", "context").out.startswith("sha256:")
    text = b"FROM busybox\nCOPY sub/kept /\n"
    done = pair.tiffin("build", "-q", "-f", "-", "context", stdin=text)
    assert done.out.startswith("sha256:"), done.err


def test_a_build_reads_stdin_as_a_dockerfile_or_a_tar(pair: Pair, context: Path) -> None:
    done = pair.tiffin("build", "-q", "-", stdin=b"FROM busybox\nRUN true\n")
    assert done.out.startswith("sha256:"), done.err
    import io

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(context, ".")
    done = pair.tiffin("build", "-q", "-", stdin=buffer.getvalue())
    assert done.out.startswith("sha256:"), done.err


def test_a_failed_build_says_so_and_how_it_ended(pair: Pair) -> None:
    text = b"FROM busybox\nRUN exit 9\n"
    theirs = pair.docker("build", "-q", "-", stdin=text)
    ours = pair.tiffin("build", "-q", "-", stdin=text)
    assert ours.code == theirs.code == 9
    assert "returned a non-zero code: 9" in ours.err
    assert ours.out == ""


def test_prune_asks_and_then_removes(pair: Pair) -> None:
    pair.docker("create", "--name", "stopped", "--network", "none", "busybox", "true")
    asked = pair.tiffin("container", "prune", "--filter", "label=nosuch", stdin=b"n\n")
    theirs = pair.docker("container", "prune", "--filter", "label=nosuch", stdin=b"n\n")
    assert asked.out.startswith("WARNING! This will remove all stopped containers.\nAre you sure")
    assert asked.code == 0
    assert theirs.out.startswith("WARNING!")
    done = pair.tiffin("container", "prune", "-f")
    assert done.out.startswith("Deleted Containers:\n")
    assert "Total reclaimed space:" in done.out
    assert pair.docker("container", "inspect", "stopped").code == 1
