"""Dockerfiles that tiffin and dockerd build alike: one a feature, and some as people write them.

``FILES`` is the context. Each case has a name, a Dockerfile, and perhaps options: ``args`` for
``--build-arg``, ``target``; ``builders`` where one of Docker's two builders can't do it; ``since``
where an older dockerd can't.
"""

from __future__ import annotations

from dataclasses import dataclass, field

FILES: dict[str, str | None] = {
    "a.txt": "a\n",
    "b.txt": "b\n",
    "run.sh": "#!/bin/sh\necho run\n",
    "dir/c.txt": "c\n",
    "dir/sub/d.txt": "d\n",
    "dir/sub/deep/e.md": "e\n",
    "other/f.md": "f\n",
    "ignored/x": "x\n",
    "empty": None,
    "link.txt": "->a.txt",
    "dirlink": "->dir",
    "src/main.py": "print('hello')\n",
    "src/pkg/__init__.py": "",
    "src/pkg/mod.py": "x = 1\n",
    "requirements.txt": "one\ntwo\n",
    "package.json": '{"name": "x"}\n',
    "package-lock.json": "{}\n",
    "index.js": "console.log(1)\n",
    "public/index.html": "<h1>hi</h1>\n",
    "public/css/site.css": "h1 {}\n",
    "main.c": "int main(void) { return 0; }\n",
    "Makefile": "all:\n\ttrue\n",
    "nginx.conf": "events {}\n",
    ".dockerignore": "ignored\n**/*.md\n!other/f.md\n",
}

BOTH = ("classic", "buildkit")
BUILDKIT = ("buildkit",)


@dataclass(frozen=True)
class Case:
    """One Dockerfile."""

    name: str
    text: str
    builders: tuple[str, ...] = BOTH
    args: dict[str, str] = field(default_factory=dict)
    target: str = ""
    since: tuple[int, ...] = ()
    """The version of dockerd whose BuildKit knows it first."""


def _from(text: str) -> str:
    return f"FROM busybox\n{text}\n"


_FEATURES = {
    "from": "",
    "env": "ENV A=1 B=\"two words\" C='$A' D=$A\\ x\nENV E $A and more",
    "env-path": "ENV PATH=$PATH:/opt/bin",
    "env-modifiers": "ENV A=1\nENV B=${A:-x} C=${N:-d} D=${A:+y} E=${N:+z}",
    "label": 'LABEL a=1 "b c"="d e" multi=\'x y\'\nLABEL old style value',
    "arg-default": "ARG V=1\nENV X=$V\nRUN echo $V > /v",
    "arg-hidden-by-env": "ARG V=arg\nENV V=env\nRUN echo $V > /v",
    "workdir": "WORKDIR /a/b\nWORKDIR c\nRUN pwd > here",
    "workdir-variable": "ENV D=/x\nWORKDIR $D/y",
    "workdir-existing": "WORKDIR /etc",
    "user": "USER 1000:1000\nRUN id -u > /tmp/u",
    "user-name": "USER user\nRUN id -g > /tmp/g",
    "expose": "EXPOSE 80 443/tcp 53/udp 8000-8002",
    "volume": 'VOLUME /data /more\nVOLUME ["/js on"]',
    "stopsignal": "STOPSIGNAL SIGQUIT",
    "maintainer": "MAINTAINER Me <me@example.org>",
    "cmd-shell": "CMD echo $HOME",
    "cmd-exec": 'CMD ["echo", "a b"]',
    "cmd-empty": "CMD []",
    "entrypoint-shell": "ENTRYPOINT exec top -b",
    "entrypoint-exec": 'ENTRYPOINT ["top", "-b"]\nCMD ["-n", "1"]',
    "entrypoint-after-cmd": 'CMD ["x"]\nENTRYPOINT ["top"]',
    "shell": 'SHELL ["/bin/sh", "-ec"]\nRUN echo x > /x\nCMD run it',
    "healthcheck": "HEALTHCHECK --interval=5s --timeout=3s --start-period=1s --retries=2 CMD true",
    "healthcheck-exec": 'HEALTHCHECK CMD ["true"]',
    "healthcheck-none": "HEALTHCHECK NONE",
    "onbuild": "ONBUILD RUN echo x > /x\nONBUILD COPY a.txt /",
    "run-shell": "RUN echo one > /one && \\\n    # a comment\n    echo two > /two",
    "run-exec": 'RUN ["touch", "/a b"]',
    "run-modes": "RUN mkdir -p /m/x && chmod 2750 /m && chmod 4711 /bin/busybox && chown 1:2 /m/x",
    "run-delete": "RUN rm -r /home && rm /bin/yes && mkdir /home",
    "run-replace": "RUN rm /etc/group && mkdir /etc/group && touch /etc/group/x",
    "run-links": "RUN ln /etc/passwd /hard && ln -s ../etc /soft && ln -s /nowhere /dangling",
    "run-fifo": "RUN mknod /pipe p && mknod /null c 1 3 && chmod 600 /pipe /null",
    "run-multi": "RUN echo 1 > /f\nRUN echo 2 >> /f\nRUN rm /f && mkdir /f",
    "copy-file": "COPY a.txt /x",
    "copy-into": "COPY a.txt b.txt /x/",
    "copy-dir": "COPY dir /x",
    "copy-dir-slash": "COPY dir/ /x/",
    "copy-all": "COPY . /all",
    "copy-wildcard": "COPY *.txt /w/\nCOPY dir/su?/d.* /w2/",
    "copy-json": 'COPY ["a.txt", "/a b/"]',
    "copy-relative": "WORKDIR /w\nCOPY a.txt .\nCOPY a.txt sub/\nCOPY a.txt ../up",
    "copy-over": "RUN mkdir /x && echo old > /x/c.txt && chmod 700 /x\nCOPY dir /x",
    "copy-symlink-target": "RUN ln -s /real /alias && mkdir /real\nCOPY a.txt /alias/\n"
    "COPY dir /alias/d",
    "copy-empty": "COPY empty /e",
    "copy-symlink": "COPY link.txt /l\nCOPY dirlink /dl",
    "copy-chown": "COPY --chown=1000:2000 dir /c\nCOPY --chown=user:extra a.txt /new/dir/a",
    "add-file": "ADD a.txt /x/",
    "add-tar": "ADD archive.tar /t/",
    "add-targz": "ADD archive.tar.gz /t",
    "add-not-tar": "ADD package.json /t/",
    "escape": "# escape=`\nFROM busybox\nRUN echo a > /a && `\n echo b > /b\nENV X=a`$b",
    "substitution": "ENV D=dir P=8080 U=user S=SIGINT\nEXPOSE $P\nUSER $U\nVOLUME /v/$D\n"
    "STOPSIGNAL $S\nLABEL x=$D\nWORKDIR /w/$D\nCOPY $D/c.txt ./$D/",
    "user-workdir": "USER user\nWORKDIR /home/w/x",
    "volume-write": "RUN mkdir /v && echo a > /v/a\nVOLUME /v\nRUN echo b > /v/b",
    "env-of-the-same-line": "ENV A=1\nENV A=2 B=$A\nENV C=$A",
    "arg-twice": "ARG A=1\nARG A=2\nENV X=$A",
    "label-lines": "LABEL a=1 \\\n  b=2 \\\n  c='3 4'",
    "run-json-shell": 'RUN [ "sh", "-c", "echo  a  >  /x" ]',
    "run-quotes": 'RUN echo "a \\"b\\" \\$c \'$HOME\'" > /q',
    "add-several": "ADD a.txt archive.tar /t/",
    "add-chown": "ADD --chown=3:4 archive.tar /t/\nADD --chown=3:4 a.txt /t/",
    "copy-several-wildcards": "COPY a.* b.t?? [l]ink.txt /w/",
    "copy-up": "COPY dir/../a.txt dir/./sub/ /w/",
    "entrypoint-and-shell": 'SHELL ["/bin/sh", "-c"]\nENTRYPOINT run\nCMD it',
    "cmd-twice": 'CMD ["a"]\nCMD b',
    "case": 'run echo x > /x\nenv a=b\ncmd ["x"]',
}

_BUILDKIT_FEATURES = {
    "copy-chmod": "COPY --chmod=0640 dir /c",
    "copy-chmod-into": "COPY --chmod=0600 a.txt /new/dir/",
    "run-mount-cache": "RUN --mount=type=cache,target=/var/c touch /var/c/x && echo y > /y",
    "run-mount-bind": "RUN --mount=type=bind,source=dir,target=/mnt/in cp /mnt/in/c.txt /out",
    "run-mount-tmpfs": "RUN --mount=type=tmpfs,target=/scratch touch /scratch/x && touch /kept",
}

_NEWER = {
    "heredoc-run": "RUN <<EOF\necho one > /one\nmkdir /d\nEOF",
    "heredoc-run-script": "RUN <<EOF\n#!/bin/sh\necho $0 > /one\nEOF",
    "heredoc-run-word": "RUN cat <<A > /a && cat <<'B' > /b\n$HOME\nA\n$HOME\nB",
    "heredoc-copy": "ARG V=1\nCOPY <<a <<'b' <<-c /h/\n$V\na\n$V\nb\n\t\tx\nc\n"
    "COPY <<EOF /one\n1\nEOF",
    "heredoc-copy-mode": "COPY --chmod=755 --chown=5:6 <<EOF /x\n#!/bin/sh\nEOF",
    "heredoc-crlf": "COPY <<EOF /x\r\na\r\n\tb\r\nEOF\r\nENV A=1\r",
    "copy-link": "RUN mkdir /x && chmod 700 /x\nCOPY --link a.txt /x/\nCOPY --link dir /y/z",
    "copy-link-owner": "COPY --link --chown=7:8 --chmod=640 dir /new/d",
    "run-network-none": "RUN --network=none ip -o link > /links",
    "healthcheck-start-interval": "HEALTHCHECK --start-interval=7s CMD true",
    "env-patterns": "ENV A=a/b/c.tar.gz\nENV B=${A#*/} C=${A##*/} D=${A%.*} E=${A%%.*}\n"
    "ENV F=${A/b/x} G=${A//\\//_}",
    "onbuild-heredoc": "ONBUILD RUN <<EOF\necho x\nEOF",
    "add-keeps-archive": "ADD archive.tar.gz archive.tar /two/",
    "workdir-windows-like": "WORKDIR a/./b/../c",
}
"""What came after dockerd 20.10."""

_STAGES = [
    Case("from-platform", "FROM --platform=linux/amd64 busybox\nENV A=1\n", BUILDKIT),
    Case(
        "onbuild-triggered",
        "FROM busybox AS a\nONBUILD RUN echo x > /x\nONBUILD ENV A=1\nFROM a\nRUN echo y > /y\n",
    ),
    Case("entrypoint-of-base", 'FROM busybox AS a\nCMD ["x"]\nFROM a\nENTRYPOINT ["e"]\n'),
    Case("stage-number", "FROM busybox\nRUN echo a > /a\nFROM busybox\nCOPY --from=0 /a /b\n"),
    Case(
        "run-mount-bind-stage",
        "FROM busybox AS a\nRUN mkdir /d && echo f > /d/f\nFROM busybox\n"
        "RUN --mount=from=a,source=/d,target=/tmp cp /tmp/f /copied\n"
        "RUN --mount=from=a,source=/d,target=/tmp,rw echo n > /tmp/n && ls /tmp > /listed\n",
        BUILDKIT,
    ),
    Case(
        "stages",
        "FROM busybox AS one\nRUN mkdir /out && echo 1 > /out/f && chown 5:6 /out/f\n"
        "FROM busybox\nCOPY --from=one /out /in\nCOPY --from=0 /out/f /f\n",
    ),
    Case(
        "stage-from-stage", "FROM busybox AS a\nENV A=1\nRUN echo a > /a\nFROM a\nRUN echo b > /b\n"
    ),
    Case("target", "FROM busybox AS a\nENV A=1\nFROM a AS b\nENV B=1\n", target="a"),
    Case("scratch", 'FROM scratch\nCOPY a.txt /a\nCMD ["/a"]\n'),
    Case(
        "scratch-from-stage",
        "FROM busybox AS a\nRUN mkdir -p /r/etc && cp /etc/passwd /r/etc/\nFROM scratch\n"
        "COPY --from=a /r /\nUSER user\n",
    ),
    Case("global-arg", "ARG TAG=latest\nFROM busybox:$TAG\nARG TAG\nENV T=$TAG\n"),
    Case("given-arg", _from("ARG V=1\nENV X=$V\nRUN echo $V > /v"), args={"V": "given"}),
    Case("copy-from-image", _from("COPY --from=busybox /etc/passwd /p")),
    Case(
        "platform-args",
        _from("ARG TARGETARCH\nARG TARGETOS\nENV P=$TARGETOS/$TARGETARCH"),
        BUILDKIT,
    ),
]

_REAL = {
    "python": """\
FROM busybox AS base
ENV PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1
WORKDIR /app
COPY requirements.txt .
RUN mkdir -p /usr/lib/site && for p in $(cat requirements.txt); do echo $p > /usr/lib/site/$p; done
COPY src/ ./src/
EXPOSE 8000
USER 1000
CMD ["python", "-m", "src.main"]
""",
    "python-multi-stage": """\
FROM busybox AS builder
WORKDIR /build
COPY requirements.txt ./
RUN mkdir /venv && cp requirements.txt /venv/installed && ln -s /bin/busybox /venv/python
FROM busybox
RUN echo 'app:x:999:999::/app:/bin/sh' >> /etc/passwd && mkdir /app && chown 999:999 /app
COPY --from=builder --chown=app:999 /venv /venv
ENV PATH="/venv:$PATH"
WORKDIR /app
COPY --chown=app:999 src .
USER app
ENTRYPOINT ["python"]
CMD ["main.py"]
""",
    "node": """\
FROM busybox
ARG NODE_ENV=production
ENV NODE_ENV=$NODE_ENV
WORKDIR /usr/src/app
COPY package*.json ./
RUN mkdir -p node_modules/left-pad && echo 'module' > node_modules/left-pad/index.js
COPY . .
EXPOSE 3000
HEALTHCHECK --interval=30s CMD wget -q http://localhost:3000 || exit 1
CMD [ "node", "index.js" ]
""",
    "c-multi-stage": """\
FROM busybox AS build
WORKDIR /src
COPY Makefile main.c ./
RUN mkdir -p /install/bin && cat main.c > app && chmod +x app && mv app /install/bin
FROM scratch
COPY --from=build /install /
COPY --from=build /bin/busybox /bin/sh
ENTRYPOINT ["/bin/app"]
""",
    "nginx": """\
FROM busybox
LABEL maintainer="NGINX <docker@example.org>"
ENV NGINX_VERSION=1.25 PKG_RELEASE=1
RUN set -x \\
    && mkdir -p /var/cache/nginx /var/log/nginx /docker-entrypoint.d \\
    && ln -sf /dev/stdout /var/log/nginx/access.log \\
    && ln -sf /dev/stderr /var/log/nginx/error.log
COPY nginx.conf /etc/nginx/nginx.conf
COPY public /usr/share/nginx/html
EXPOSE 80
STOPSIGNAL SIGQUIT
CMD ["nginx", "-g", "daemon off;"]
""",
    "static-site": """\
FROM busybox AS site
COPY public /site
RUN find /site -name '*.css' | xargs -r gzip -k 2>/dev/null; echo built > /site/version
FROM busybox
COPY --from=site /site/ /www/
VOLUME /www/uploads
CMD ["httpd", "-f", "-h", "/www"]
""",
    "entrypoint-script": """\
FROM busybox
COPY run.sh /usr/local/bin/docker-entrypoint.sh
RUN chmod 755 /usr/local/bin/docker-entrypoint.sh && mkdir -p /data && chown 1000:1000 /data
VOLUME /data
WORKDIR /data
ENTRYPOINT ["docker-entrypoint.sh"]
CMD ["serve"]
""",
    "database": """\
FROM busybox
RUN echo 'db:x:70:' >> /etc/group && echo 'db:x:70:70::/var/lib/db:/bin/sh' >> /etc/passwd
ENV PGDATA=/var/lib/db/data
RUN mkdir -p "$PGDATA" && chown -R db:db "$PGDATA" && chmod 1777 "$PGDATA"
VOLUME /var/lib/db/data
COPY --chown=db:db nginx.conf /etc/db/db.conf
USER db
STOPSIGNAL SIGINT
EXPOSE 5432
CMD ["postgres"]
""",
    "test-and-release": """\
FROM busybox AS deps
WORKDIR /w
COPY requirements.txt .
RUN cp requirements.txt lock
FROM deps AS test
COPY src src
RUN ls src > /report
FROM deps AS release
COPY --from=test /report /report
COPY src src
ENV MODE=release
""",
    "layers-and-cleanup": """\
FROM busybox
RUN mkdir /pkg && echo big > /pkg/archive && cp /pkg/archive /usr/installed && rm -r /pkg
RUN rm -rf /tmp/* /var/* && mkdir -p /var/run
COPY . /app
RUN rm -r /app/dir /app/public && chmod -R go-w /app
WORKDIR /app
""",
    "args-everywhere": """\
ARG BASE=busybox
FROM ${BASE}
ARG UID=1234
ARG HOME_DIR=/home/app
RUN echo "app:x:${UID}:${UID}::${HOME_DIR}:/bin/sh" >> /etc/passwd && mkdir -p ${HOME_DIR}
WORKDIR ${HOME_DIR}
COPY --chown=1234 a.txt ${HOME_DIR}/${UID}.txt
USER ${UID}
ENV APP_HOME=${HOME_DIR} PATH=${HOME_DIR}/bin:${PATH}
LABEL org.example.uid="${UID}"
""",
    "go-like": """\
FROM busybox AS build
WORKDIR /go/src/app
COPY . .
RUN mkdir /out && cp main.c /out/app && chmod 755 /out/app
FROM scratch AS final
COPY --from=build /etc/passwd /etc/passwd
COPY --from=build /out/app /app
USER 65534:65534
EXPOSE 8080/tcp
ENTRYPOINT ["/app"]
""",
}

CASES = [
    *(
        Case(name, text if text.startswith("# escape") else _from(text))
        for name, text in _FEATURES.items()
    ),
    *(Case(name, _from(text), BUILDKIT) for name, text in _BUILDKIT_FEATURES.items()),
    *(
        Case(name, _from(text), BUILDKIT, since=(26,) if name in ("env-patterns",) else (25,))
        for name, text in _NEWER.items()
    ),
    *_STAGES,
    *(Case(f"real-{name}", text) for name, text in _REAL.items()),
]
