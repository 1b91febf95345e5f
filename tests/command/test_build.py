"""`tiffin build` as a user has it: its output, its options, what it leaves."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from command.conftest import Command

pytestmark = pytest.mark.root

DOCKERFILE = "FROM busybox\nCOPY in.txt /data/\nRUN cat /data/in.txt > /data/out.txt\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "in.txt").write_text("hello\n")
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def test_reasons(tiffin: Command, folder: Path) -> None:
    tiffin("build", "-t", "x", str(folder))
    (folder / "in.txt").write_text("changed\n")
    output = tiffin("build", "-t", "x", str(folder))
    assert "Not cached: COPY in.txt /data/: in.txt changed (content)\n" in output
    assert "nothing like it" not in output
    later = tiffin("builder", "why", "x", "COPY")
    assert later == "  2  COPY in.txt /data/\n     COPY in.txt /data/: in.txt changed (content)\n"
    assert "     nothing like it was cached\n" not in later
    assert "the step before it changed (COPY in.txt /data/)" in tiffin("builder", "why", "x", "3")
    assert "has no step '9'" in tiffin.result("builder", "why", "x", "9").stderr.decode()
    (folder / "Dockerfile").write_text(f"{DOCKERFILE}WORKDIR /new\n")
    output = tiffin("build", "--why", str(folder))
    assert "Not cached: WORKDIR /new: nothing like it is in the cache\n" in output


def test_check(tiffin: Command, folder: Path) -> None:
    assert tiffin("build", "--check", str(folder)) == "Check complete, no warnings found.\n"
    (folder / "Dockerfile").write_text("FROM busybox\nCOPY $WHAT /\nCMD run it\n")
    output = tiffin("build", "--check", str(folder), code=1)
    assert output.startswith("Check complete, 2 warnings have been found!\n\nWARNING: UndefinedVar")
    assert "\nDockerfile:2:7\n" in output and "  3 | >>> CMD run it\n" in output
    assert tiffin("images", "-q") != ""
    assert "CMD" not in tiffin("history", "busybox", "--no-trunc").replace('CMD ["sh"]', "")


def test_an_error_shows_the_source(tiffin: Command, folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM busybox\n\nRNU make\n")
    error = tiffin.result("build", str(folder)).stderr.decode()
    assert "line 3: unknown instruction: RNU (did you mean RUN?)\nDockerfile:3:1\n" in error
    assert "  3 | >>> RNU make\n" in error
    (folder / "Dockerfile").write_text("FROM busybox\nRUN exit 4\n")
    done = tiffin.result("build", str(folder))
    assert done.returncode == 4
    assert "returned a non-zero code: 4" in done.stderr.decode()
    assert "  2 | >>> RUN exit 4\n" in done.stderr.decode()


def test_outputs(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    before = tiffin("images", "-a", "-q")
    out = tmp_path / "out"
    tiffin("build", "-o", str(out), str(folder))
    assert (out / "data" / "out.txt").read_text() == "hello\n"
    assert not (out / ".dockerenv").exists() and not (out / "proc").exists()
    archive = tmp_path / "a.tar"
    tiffin("build", "--output", f"type=tar,dest={archive}", str(folder))
    with tarfile.open(archive) as tar:
        assert tar.extractfile("data/out.txt").read() == b"hello\n"  # type: ignore[union-attr]
        names = tar.getnames()
        assert len(names) == len(set(names))
    whole = tiffin.result("build", "-o", "-", str(folder)).stdout
    assert whole == archive.read_bytes()
    assert tiffin("images", "-a", "-q") == before, "an image that is exported does not stay"
    for kind in ("oci", "docker"):
        image = tmp_path / f"{kind}.tar"
        tiffin("build", "-t", "named", "-o", f"type={kind},dest={image}", str(folder))
        with tarfile.open(image) as tar:
            assert {"index.json", "oci-layout"} <= set(tar.getnames())
    refused = tiffin.result("build", "-o", "type=registry", str(folder)).stderr.decode()
    assert "tag is needed when pushing to registry" in refused


def test_annotations(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    image = tmp_path / "oci.tar"
    given = ("--annotation", "org.a=1", "--annotation", "manifest-descriptor:org.b=2")
    tiffin("build", *given, "-o", f"type=oci,dest={image}", str(folder))
    with tarfile.open(image) as tar:
        (entry,) = json.load(tar.extractfile("index.json"))["manifests"]  # type: ignore[arg-type]
        assert entry["annotations"] == {"org.b": "2"}
        name = f"blobs/{entry['digest'].replace(':', '/')}"
        manifest = json.load(tar.extractfile(name))  # type: ignore[arg-type]
    assert manifest["annotations"] == {"org.a": "1"}
    tiffin("build", "-o", f"type=oci,dest={image}", str(folder))
    with tarfile.open(image) as tar:
        assert b"annotations" not in tar.extractfile("index.json").read()  # type: ignore[union-attr]
    refused = tiffin.result("build", "--annotation", "index:a=b", str(folder)).stderr.decode()
    assert "index annotations are not supported" in refused


def test_files_for_programs(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    iid, metadata = tmp_path / "iid", tmp_path / "metadata"
    tiffin("build", "-t", "x", "--iidfile", str(iid), "--metadata-file", str(metadata), str(folder))
    image = tiffin.inspect("x")["Id"]
    assert iid.read_text() == image
    assert json.loads(metadata.read_text()) == {
        "containerimage.config.digest": image,
        "containerimage.digest": image,
        "image.name": "x",
    }


def test_secrets(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("from a file")
    tiffin.environment["TOKEN"] = "from the environment"
    (folder / "Dockerfile").write_text(
        "FROM busybox\nRUN --mount=type=secret,id=f --mount=type=secret,id=TOKEN,env=T "
        '[ "$(cat /run/secrets/f)" = "from a file" ] && [ "$T" = "from the environment" ]\n'
    )
    secrets = ("--secret", f"id=f,src={tmp_path}/secret", "--secret", "id=TOKEN")
    tiffin("build", *secrets, str(folder))
    error = tiffin.result("build", "--secret", "id=f,src=/nope", str(folder)).stderr.decode()
    assert "--secret f: /nope: No such file" in error


def test_named_context_and_filter(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "o").write_text("other\n")
    (folder / "Dockerfile").write_text(
        "FROM busybox AS a\nRUN cat /etc/passwd\nFROM a AS b\nCOPY --from=other o /o\nRUN cat /o\n"
    )
    words = ("build", "--build-context", f"other={other}", "--jobs", "2")
    assert "other\n" in tiffin(*words, str(folder))
    assert tiffin(*words, str(folder)).count("Using cache") == 3
    output = tiffin(*words, "--no-cache-filter", "b", str(folder))
    assert output.count("Using cache") == 1


def test_raw_progress(tiffin: Command, folder: Path) -> None:
    lines = tiffin("build", "--progress", "rawjson", str(folder)).splitlines()
    events = [json.loads(line) for line in lines]
    steps = [each["build"] for each in events if "build" in each]
    assert {"started", "running", "done"} <= {each["state"] for each in steps}
    assert any("aux" in each for each in events)
    error = tiffin.result("build", "--progress", "loud", str(folder)).stderr.decode()
    assert "invalid progress mode 'loud'" in error


def test_verify(tiffin: Command, folder: Path) -> None:
    tiffin.environment["SOURCE_DATE_EPOCH"] = "1700000000"
    output = tiffin("build", "--verify", str(folder))
    assert "Verified: the second build gave the same image\n" in output
    (folder / "Dockerfile").write_text(
        "FROM busybox\nRUN mkdir /d && touch /d/a && cat /proc/sys/kernel/random/uuid > /d/b\n"
    )
    error = tiffin.result("build", "--verify", str(folder)).stderr.decode()
    assert "the second build gave another image: RUN /bin/sh -c mkdir" in error
    assert "/d/b differs (content)" in error
    del tiffin.environment["SOURCE_DATE_EPOCH"]
    assert (
        "set SOURCE_DATE_EPOCH" in tiffin.result("build", "--verify", str(folder)).stderr.decode()
    )


def test_squash(tiffin: Command, folder: Path) -> None:
    (folder / "Dockerfile").write_text(
        f"{DOCKERFILE}RUN rm /data/in.txt /bin/cat && ln -s x /data/link\n"
    )
    tiffin("build", "--squash", "-t", "x", str(folder))
    assert len(tiffin.inspect("x")["RootFS"]["Layers"]) == 2
    output = tiffin("run", "--rm", "x", "sh", "-c", "ls /data; ls /bin/cat || echo gone")
    assert output == "link\nout.txt\ngone\n"


def test_a_shell_in_a_failed_step(tiffin: Command, folder: Path) -> None:
    (folder / "Dockerfile").write_text("FROM busybox\nENV A=b\nRUN echo half > /half; exit 5\n")
    done = tiffin.result("build", "--debug", str(folder), stdin=b"cat /half; echo $A; exit 0\n")
    assert done.returncode == 5
    assert done.stdout.decode().endswith("half\nb\n")
    assert tiffin("ps", "-a", "-q") == ""


def test_a_cache_in_a_folder(tiffin: Command, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    tiffin("build", "--cache-to", f"type=local,dest={cache}", "-t", "x", str(folder))
    before = tiffin.inspect("x")["Id"]
    tiffin("rmi", "x")
    tiffin("builder", "prune", "-af")
    assert "Using cache" not in tiffin("build", "-t", "y", str(folder))
    tiffin("rmi", "y")
    tiffin("builder", "prune", "-af")
    output = tiffin("build", "--cache-from", f"type=local,src={cache}", "-t", "z", str(folder))
    assert output.count("Using cache") == 2
    assert tiffin.inspect("z")["Id"] == before
    assert tiffin("run", "--rm", "z", "cat", "/data/out.txt") == "hello\n"
    tiffin.environment["LC_ALL"] = os.environ.get("LC_ALL", "C")


def test_reasons_of_a_dozen_changes(tiffin: Command, folder: Path) -> None:
    """What somebody changes, and the first reason that is given."""
    text = (
        "FROM busybox\nARG V=1\nENV MODE=dev\nCOPY --chown=1 app /app\nRUN echo $V > /v\n"
        "COPY . /all\nRUN echo end\n"
    )
    (folder / "app").mkdir()
    (folder / "app" / "a").write_text("a")
    (folder / "app" / "b").write_text("b")
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text(text)
    tiffin("build", "-q", str(folder))

    def reason(*words: str, place: int = 0) -> str:
        output = tiffin("build", *words, str(folder))
        lines = [line for line in output.splitlines() if "Not cached: " in line]
        return lines[place].partition("Not cached: ")[2]

    copy = "COPY --chown=1 app /app"
    (folder / "app" / "a").write_text("aa")
    assert reason() == f"{copy}: app/a changed (content)"
    (folder / "app" / "b").chmod(0o755)
    assert reason() == f"{copy}: app/b changed (mode 0644 to 0755)"
    (folder / "app" / "c").write_text("c")
    assert reason() == f"{copy}: app/c is new"
    (folder / "app" / "a").unlink()
    (folder / "app" / "b").unlink()
    assert reason() == f"{copy}: app/a is gone, and 1 more (1 gone)"
    (folder / "app" / "c").unlink()
    (folder / "app" / "c").symlink_to("a")
    assert reason() == f"{copy}: app/c changed (type)"
    assert reason("--build-arg", "V=2").endswith(": argument V changed (2, it was 1)")
    assert reason("--build-arg", "V=3", place=1) == (
        "COPY . /all: the step before it changed (RUN |1 V=3 /bin/sh -c echo $V > /v)"
    )
    (folder / ".dockerignore").write_text("in.txt\n")
    assert reason() == (
        "COPY . /all: .dockerignore is new, and 1 more (1 excluded by .dockerignore)"
    )
    dockerfile.write_text(text.replace("=dev", "=prod"))
    assert reason() == "ENV MODE=prod: the instruction changed (it was: ENV MODE=dev)"
    assert reason("--no-cache", "--why") == "ARG V=1: it was asked for anew (--no-cache)"
    dockerfile.write_text(text.replace("--chown=1", "--chown=2"))
    assert reason().endswith(f"the instruction changed (it was: {copy})")
    tiffin("build", "-t", "busybox", "-", stdin=b"FROM busybox\nRUN echo newer > /n\n")
    assert reason().startswith("ARG V=1: the base image changed (")
