"""`tiffin build` with contexts that are somewhere else, or come on stdin."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from build.test_remote import repository, site  # noqa: F401

if TYPE_CHECKING:
    from command.conftest import Command

pytestmark = pytest.mark.root

Site = tuple[Path, str, list[str]]
DOCKERFILE = b"FROM busybox\nCOPY . /all\nRUN ls /all\n"


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def test_behind_a_url(tiffin: Command, site: Site) -> None:  # noqa: F811
    folder, url, _ = site
    tar = archive({"Dockerfile": DOCKERFILE, "a": b"a", "skipped": b"", ".dockerignore": b"skip*"})
    (folder / "context.tar.gz").write_bytes(gzip.compress(tar))
    output = tiffin("build", "-t", "x", f"{url}/context.tar.gz")
    assert "Dockerfile\na\n" in output
    (folder / "Dockerfile").write_bytes(b"FROM busybox\nRUN echo alone\n")
    assert "alone\n" in tiffin("build", f"{url}/Dockerfile")
    given = tiffin("build", "-f", "-", f"{url}/context.tar.gz", stdin=DOCKERFILE + b"RUN pwd\n")
    assert "Step 4/4 : RUN pwd" in given
    refused = tiffin.result("build", f"{url}/none.tar").stderr.decode()
    assert "unable to prepare context: can't fetch" in refused


def test_a_git_repository(
    tiffin: Command,
    site: Site,  # noqa: F811
    repository: tuple[str, str],  # noqa: F811
) -> None:
    address, _ = repository
    text = b"FROM busybox\nCOPY run.sh /\nRUN cat /run.sh; ls -a /\n"
    assert "two" in tiffin("build", "-f", "-", address, stdin=text)
    assert "one" in tiffin("build", "-f", "-", f"{address}#v1", stdin=text)
    text = b"FROM busybox\nCOPY . /docs/\nRUN ls -a /docs\n"
    assert "..\na\n" in tiffin("build", "-f", "-", f"{address}#main:docs", stdin=text)
    error = tiffin.result("build", address).stderr.decode()
    assert "Cannot locate specified Dockerfile: Dockerfile" in error
    error = tiffin.result("build", f"{address}#nothing").stderr.decode()
    assert "has no branch, tag or commit nothing" in error
    assert not list((tiffin.root / "work").iterdir())


def test_on_stdin(tiffin: Command) -> None:
    tar = archive({"Dockerfile": DOCKERFILE, "a": b"a", "other": b"FROM busybox\nCOPY a /b\n"})
    assert "Dockerfile\na\nother\n" in tiffin("build", "-", stdin=tar)
    assert "COPY a /b" in tiffin("build", "-f", "other", "-", stdin=gzip.compress(tar))
    assert "hello" in tiffin("build", "-", stdin=b"FROM busybox\nRUN echo hello\n")
    error = tiffin.result("build", "-f", "-", "-").stderr.decode()
    assert "can't use stdin for both" in error


def test_named_contexts(
    tiffin: Command,
    site: Site,  # noqa: F811
    repository: tuple[str, str],  # noqa: F811
    tmp_path: Path,
) -> None:
    folder, url, _ = site
    (folder / "files.tar").write_bytes(archive({"f": b"from a tar\n"}))
    layout = tmp_path / "layout.tar"
    tiffin("build", "-t", "inner:1", "-o", f"type=oci,dest={layout}", "-", stdin=b"FROM busybox\n"
           b"RUN echo from a layout > /l\n")  # fmt: skip
    tiffin("rmi", "-f", "inner:1")
    tiffin("builder", "prune", "-af")
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "xf", layout, "-C", tmp_path / "layout"], check=True)
    text = (
        b"FROM base\nCOPY --from=tar f /f\nCOPY --from=git run.sh /g\nCOPY --from=img /bin/sh /i\n"
        b"RUN cat /l /f /g\n"
    )
    output = tiffin(
        "build", "--build-context", f"base=oci-layout://{tmp_path}/layout:1",
        "--build-context", f"tar={url}/files.tar", "--build-context", f"git={repository[0]}",
        "--build-context", "img=docker-image://busybox", "-", stdin=text,
    )  # fmt: skip
    assert "from a layout\nfrom a tar\ntwo" in output
    error = tiffin.result(
        "build", "--build-context", f"base=oci-layout://{tmp_path}/none", "-", stdin=text
    ).stderr.decode()
    assert "is no OCI layout" in error
