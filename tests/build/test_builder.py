"""Whole builds: steps, layers, history, the cache, failures."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tiffin.build.cache import BuildCache
from tiffin.errors import BuildFailure, InvalidParameter, NotFound, TiffinError, Unsupported
from tiffin.layer.entry import Kind

if TYPE_CHECKING:
    from build.conftest import Kitchen

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("busybox")]

README = """\
FROM base
COPY . /app
RUN busybox cp /app/in.txt /app/out.txt
CMD busybox cat /app/out.txt
"""


def test_the_first_example(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    (context / "in.txt").write_text("hello")
    image = kitchen.build(context, README, tags=["app"])
    assert len(image.diff_ids) == 3
    assert [entry.created_by for entry in image.history] == [
        "base",
        "COPY . /app",
        "RUN /bin/sh -c busybox cp /app/in.txt /app/out.txt",
        'CMD ["/bin/sh" "-c" "busybox cat /app/out.txt"]',
    ]
    assert [entry.empty_layer for entry in image.history] == [False, False, False, True]
    assert image.cmd == ("/bin/sh", "-c", "busybox cat /app/out.txt")
    assert image.created == image.history[-1].created
    assert kitchen.listing(image, "app") == {
        "app/Dockerfile": README,
        "app/in.txt": "hello",
        "app/out.txt": "hello",
    }
    assert kitchen.images["app:latest"] == image


def test_what_it_prints(kitchen: Kitchen, context: Path) -> None:
    base = kitchen.base()
    image = kitchen.build(context, README.replace("cp", "echo"), tags=["app:1", "x.io/b"])
    lines = kitchen.text().split("\n")
    container = kitchen.ran[0].container_id[:12]
    assert lines[0] == "Step 1/4 : FROM base"
    assert lines[1] == f" ---> {base[7:19]}"
    assert lines[2] == "Step 2/4 : COPY . /app"
    assert lines[4] == "Step 3/4 : RUN busybox echo /app/in.txt /app/out.txt"
    assert lines[5] == f" ---> Running in {container}"
    assert lines[6] == "/app/in.txt /app/out.txt"
    assert lines[7] == f" ---> Removed intermediate container {container}"
    assert lines[-5] == f" ---> {image.id[7:19]}"
    assert lines[-4:-1] == [
        f"Successfully built {image.id[7:19]}",
        "Successfully tagged app:1",
        "Successfully tagged x.io/b:latest",
    ]
    assert kitchen.messages[-4] == {"aux": {"ID": image.id}}
    kitchen.build(context, quiet=True)
    assert kitchen.messages == [{"stream": f"{image.id}\n"}]


def test_a_second_build_gives_the_same_image_without_running_anything(
    kitchen: Kitchen, context: Path
) -> None:
    kitchen.base()
    (context / "in.txt").write_text("hello")
    first = kitchen.build(context, README)
    second = kitchen.build(context)
    assert second.id == first.id
    assert kitchen.cached() == 3
    assert len(kitchen.ran) == 1
    third = kitchen.build(context, no_cache=True)
    assert third.id != first.id
    assert third.diff_ids[:2] == first.diff_ids[:2]
    assert kitchen.cached() == 0 and len(kitchen.ran) == 2
    assert kitchen.build(context).id == third.id


def test_a_miss_says_why(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    (context / "in.txt").write_text("hello")
    (context / "config").mkdir()
    (context / "config" / "a.py").write_text("1")
    kitchen.build(context, README)
    assert "Not cached" not in kitchen.text()
    (context / "config" / "a.py").write_text("2")
    kitchen.build(context)
    assert " ---> Not cached: COPY . /app: config/a.py changed (content)\n" in kitchen.text()
    assert "in.txt /app/out.txt: the step before it changed (" in kitchen.text()
    (context / "in.txt").chmod(0o600)
    kitchen.build(context)
    assert "COPY . /app: in.txt changed (mode 0644 to 0600)\n" in kitchen.text()
    (context / "new").touch()
    (context / "newer").touch()
    kitchen.build(context)
    assert "COPY . /app: new is new, and 1 more (1 new)\n" in kitchen.text()
    (context / "in.txt").touch()
    kitchen.build(context)
    assert kitchen.cached() == 3, "the time of a file's modification is no reason"


def test_a_changed_base_or_instruction_says_so(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    kitchen.build(context, "FROM base\nENV A=1\nRUN busybox true\n")
    kitchen.build(context, "FROM base\nENV A=2\nRUN busybox true\n")
    assert "ENV A=2: the instruction changed (it was: ENV A=1)\n" in kitchen.text()
    kitchen.base(files={"etc/more": "x"})
    kitchen.build(context)
    assert "ENV A=2: the base image changed (" in kitchen.text()


def test_a_failing_run_leaves_no_image_and_keeps_what_worked(
    kitchen: Kitchen, context: Path
) -> None:
    kitchen.base()
    images = dict(kitchen.images)
    dockerfile = "FROM base\nRUN busybox echo once > /file\n\nRUN busybox echo bad; exit 3\n"
    for attempt in range(2):
        with pytest.raises(BuildFailure) as caught:
            kitchen.build(context, dockerfile, tags=["no"])
        assert caught.value.message == (
            "The command '/bin/sh -c busybox echo bad; exit 3' returned a non-zero code: 3 "
            "(Dockerfile line 4: RUN busybox echo bad; exit 3)"
        )
        assert caught.value.exit_code == 3
        assert "bad\n" in kitchen.text()
        assert kitchen.images == images
        assert kitchen.cached() == attempt
    assert not [key for key in kitchen.layers.driver.keys() if key.startswith("run-")]  # noqa: SIM118


def test_a_program_that_is_not_there(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    with pytest.raises(BuildFailure) as caught:
        kitchen.build(context, 'FROM base\nRUN ["nope", "x"]\n')
    assert caught.value.exit_code == 127
    assert caught.value.message.startswith(
        "The command 'nope x' returned a non-zero code: 127: exec: \"nope\": executable file"
    )


def test_arguments_count_from_their_first_use(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    dockerfile = (
        "ARG TAG=latest\nFROM base:$TAG\nENV B=env\nARG TAG\nARG V=1\nARG B=arg\n"
        "COPY Dockerfile /x\nRUN busybox echo $V $B $TAG > /v\n"
    )
    image = kitchen.build(context, dockerfile)
    assert kitchen.listing(image)["v"] == "1 env latest\n"
    assert image.history[-1].created_by == (
        "RUN |2 TAG=latest V=1 /bin/sh -c busybox echo $V $B $TAG > /v"
    )
    image = kitchen.build(context, build_args={"V": "2", "unused": "x"})
    assert kitchen.listing(image)["v"] == "2 env latest\n"
    assert kitchen.cached() == 5
    assert "[Warning] One or more build-args [unused] were not consumed\n" in kitchen.text()
    assert kitchen.ran[-1].env.count("V=2") == 1


def test_proxies_are_given_but_never_recorded(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    build_args = {"HTTP_PROXY": "http://user:secret@proxy"}
    image = kitchen.build(context, "FROM base\nRUN busybox true\n", build_args=build_args)
    assert "HTTP_PROXY=http://user:secret@proxy" in kitchen.ran[0].env
    assert b"secret" not in image.to_bytes()
    assert kitchen.build(context).id == image.id


def test_configuration_instructions(kitchen: Kitchen, context: Path) -> None:
    kitchen.base(Env=["PATH=/bin"], Cmd=["old"], Labels={"a": "b"})
    image = kitchen.build(
        context,
        'FROM base\nENV A=1 PATH=$PATH:/x\nLABEL c="$A d"\nUSER me\nEXPOSE 80 90-91/udp\n'
        "VOLUME /data /$A\nSTOPSIGNAL SIGINT\nMAINTAINER me\n"
        'SHELL ["/bin/sh", "-ec"]\nENTRYPOINT busybox\nHEALTHCHECK --interval=5s CMD true\n'
        "ONBUILD RUN echo $A\n",
        labels={"given": "$A"},
    )
    assert image.env == ("PATH=/bin:/x", "A=1")
    assert image.labels == {"a": "b", "c": "1 d", "given": "$A"}
    assert image.user == "me"
    assert image.exposed_ports == ("80/tcp", "90/udp", "91/udp")
    assert image.volumes == ("/1", "/data")
    assert image.stop_signal == "SIGINT"
    assert image.author == "me"
    assert image.entrypoint == ("/bin/sh", "-ec", "busybox")
    assert image.cmd is None, "an ENTRYPOINT drops the base's CMD"
    assert image.healthcheck == {"Test": ["CMD-SHELL", "true"], "Interval": 5 * 10**9}
    assert image.on_build == ("RUN echo $A",)
    assert len(image.diff_ids) == 1
    again = kitchen.build(context, "FROM base\nCMD new\nENTRYPOINT x\n")
    assert again.cmd == ("/bin/sh", "-c", "new")


def test_workdir_makes_its_directory_for_the_user(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    image = kitchen.build(
        context, "FROM base\nWORKDIR /etc\nUSER me\nWORKDIR /a/b\nWORKDIR c\nRUN busybox pwd\n"
    )
    assert image.working_dir == "/a/b/c"
    assert [entry.empty_layer for entry in image.history[1:]] == [True, True, False, False, False]
    for path in ("a", "a/b", "a/b/c"):
        entry = kitchen.entry(image, path)
        assert (entry.kind, entry.mode, entry.uid, entry.gid) == (Kind.DIRECTORY, 0o755, 1000, 1001)
    assert "/a/b/c\n" in kitchen.text()
    with pytest.raises(BuildFailure, match="cannot mkdir /etc/passwd/x: /etc/passwd is not a dir"):
        kitchen.build(context, "FROM base\nWORKDIR /etc/passwd/x\n")


def test_stages(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    dockerfile = (
        "FROM base AS build\nRUN busybox mkdir /out && busybox echo made > /out/file\n"
        "RUN busybox chown -R 7:8 /out\n"
        "FROM base AS unneeded\nRUN exit 1\n"
        "FROM build AS more\nENV A=1\n"
        "FROM scratch AS last\nCOPY --from=build /out /copied\nCOPY --from=0 /out/file /\n"
        "COPY --from=base /etc/passwd /\n"
    )
    image = kitchen.build(context, dockerfile)
    assert kitchen.listing(image) == {
        "copied": "/",
        "copied/file": "made\n",
        "file": "made\n",
        "passwd": kitchen.listing(image)["passwd"],
    }
    assert (kitchen.entry(image, "file").uid, kitchen.entry(image, "file").gid) == (7, 8)
    assert kitchen.text().startswith("Step 1/7 : FROM base AS build\n")
    more = kitchen.build(context, target="MORE")
    assert more.env[-1] == "A=1"
    assert len(more.diff_ids) == 3
    with pytest.raises(InvalidParameter, match=r'"mor" could not be found \(did you mean more\?\)'):
        kitchen.build(context, target="mor")


def test_copy_from_a_stage_depends_on_its_files_alone(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    dockerfile = "FROM base AS b\nRUN busybox echo x > /f # {}\nFROM scratch\nCOPY --from=b /f /f\n"
    kitchen.build(context, dockerfile.format(1))
    kitchen.build(context, dockerfile.format(2))
    assert kitchen.cached() == 1


def test_onbuild_triggers_run_in_the_next_build(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    kitchen.build(
        context, "FROM base\nONBUILD COPY Dockerfile /d\nONBUILD ENV A=1\n", tags=["parent"]
    )
    image = kitchen.build(context, "FROM parent\n")
    short = image.id.removeprefix("sha256:")[:12]
    said = kitchen.text().splitlines()
    assert said[1:3] == ["# Executing 2 build triggers", f" ---> {short}"]  # no other id
    assert image.env[-1] == "A=1" and image.on_build == ()
    assert "d" in kitchen.listing(image)


def test_a_health_check_that_gives_way_is_told(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    first = "FROM base\nHEALTHCHECK NONE\nHEALTHCHECK --retries=2 CMD true\n"
    kitchen.build(context, first)
    assert "Note:" not in kitchen.text()
    kitchen.build(context, f'{first}HEALTHCHECK CMD ["false"]\n')
    assert "Note: overriding previous HEALTHCHECK: [CMD-SHELL true]\n" in kitchen.text()


def test_from_alone_tags_the_base(kitchen: Kitchen, context: Path) -> None:
    base = kitchen.base()
    assert kitchen.build(context, "FROM base\n", tags=["other"]).id == base
    with pytest.raises(BuildFailure, match=r"No image was generated\. Is your Dockerfile empty\?"):
        kitchen.build(context, "FROM scratch\n")


def test_a_stage_starts_with_a_path(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    image = kitchen.build(context, "FROM base\nENV PATH=$PATH:/more\n")
    assert image.env == ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/more",)
    image = kitchen.build(context, "FROM scratch AS a\nFROM a AS b\nLABEL x=y\n")
    assert len(image.env) == 1


def test_source_date_epoch(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    build_args = {"SOURCE_DATE_EPOCH": "86400"}
    image = kitchen.build(context, "FROM base\nENV A=1\nWORKDIR /w\n", build_args=build_args)
    assert image.created == "1970-01-02T00:00:00Z"
    kitchen.build(context)
    assert kitchen.cached() == 0, "an image of another time is another image"
    again = kitchen.build(context, build_args=build_args, no_cache=True)
    assert again.id == image.id


@pytest.mark.parametrize(
    ("dockerfile", "error", "message"),
    [
        ("FROM nothing\n", NotFound, r"no such image: nothing \(Dockerfile line 1: FROM nothing\)"),
        ("FROM base\nCOPY nope /\n", BuildFailure, "line 2: COPY nope /"),
        ("FROM base\nENV A=${b\n", InvalidParameter, r"missing '}'.*line 2"),
        ("FROM base\nCOPY --from=nope a /\n", NotFound, "invalid from flag value nope: no such"),
        ("FROM base\nCOPY --from=0 a /\n", InvalidParameter, "refers to current build stage"),
        ("FROM base\nCOPY --chown=who Dockerfile /\n", InvalidParameter, "unable to find user who"),
        ("FROM base\nCOPY --chmod=u+y Dockerfile /\n", InvalidParameter, "invalid chmod param"),
        ("FROM base\nEXPOSE x\n", InvalidParameter, "invalid containerPort: x"),
        ("FROM base\nSTOPSIGNAL NO\n", InvalidParameter, "Invalid signal: NO"),
        ("FROM base\nRUN --mount=type=ssh,required x\n", BuildFailure, "ssh agent default: not"),
        ("FROM base\nRUN --mount=type=secret,id=a,required x\n", BuildFailure, "secret a: not fo"),
        ("FROM base\nRUN --security=insecure x\n", Unsupported, "--allow security.insecure"),
        ("FROM base\nRUN --network=host x\n", Unsupported, "--allow network.host"),
        ("FROM base\nRUN --mount=target=/x,from=0 x\n", InvalidParameter, "current build stage"),
    ],
)
def test_errors_name_the_line(
    kitchen: Kitchen, context: Path, dockerfile: str, error: type[TiffinError], message: str
) -> None:
    kitchen.base()
    with pytest.raises(error, match=message):
        kitchen.build(context, dockerfile)


def test_a_cancelled_build_stops(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    stopped = threading.Event()
    kitchen.before_run = stopped.set
    with pytest.raises(BuildFailure, match="Build cancelled"):
        kitchen.build(
            context,
            "FROM base\nRUN busybox true\nRUN busybox echo never\n",
            cancelled=stopped.is_set,
        )
    assert len(kitchen.ran) == 1


def test_builds_side_by_side_end_in_the_same_image(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen.base()
    results: list[str] = []
    meet = threading.Barrier(3)

    def one(number: int) -> None:
        folder = tmp_path / f"context{number}"
        folder.mkdir()
        (folder / "in.txt").write_text("same")
        meet.wait(timeout=30)
        results.append(kitchen.build(folder, README).id)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3 and len(set(results)) == 1


def test_collection_during_a_build_takes_nothing_from_it(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    cache = BuildCache(kitchen.database)

    def prune() -> None:
        cache.remove([record.key for record in cache.records()])
        kitchen.layers.collect([])

    kitchen.before_run = prune
    image = kitchen.build(context, "FROM base\nCOPY . /a\nRUN busybox echo x > /a/b\n")
    assert kitchen.listing(image, "a")["a/b"] == "x\n"
    kitchen.before_run = lambda: None
    kitchen.build(context)
    assert kitchen.cached() == 1, "the COPY is not cached any more, the RUN is"


def test_pull_asks_for_every_image(kitchen: Kitchen, context: Path) -> None:
    kitchen.base()
    dockerfile = "FROM base AS a\nFROM a\nCOPY --from=base /etc/passwd /p\n"
    kitchen.build(context, dockerfile)
    assert kitchen.pulled == []
    kitchen.build(context, dockerfile, pull=True)
    assert kitchen.pulled == ["base", "base"]
