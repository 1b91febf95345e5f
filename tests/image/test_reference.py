"""References: the cases of the distribution specification, and properties over all of them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tiffin.errors import InvalidParameter
from tiffin.image.reference import Reference, check_digest, is_digest, is_image_id

HEX = "0123456789abcdef" * 4
SHA256 = f"sha256:{HEX}"
SHA512 = f"sha512:{HEX}{HEX}"


@pytest.mark.parametrize(
    ("text", "familiar", "canonical"),
    [
        ("busybox", "busybox", "docker.io/library/busybox"),
        ("busybox:1", "busybox:1", "docker.io/library/busybox:1"),
        ("library/busybox", "busybox", "docker.io/library/busybox"),
        ("docker.io/busybox", "busybox", "docker.io/library/busybox"),
        ("docker.io/library/busybox:1.36", "busybox:1.36", "docker.io/library/busybox:1.36"),
        ("index.docker.io/library/busybox", "busybox", "docker.io/library/busybox"),
        ("index.docker.io/busybox", "busybox", "docker.io/library/busybox"),
        ("team/app", "team/app", "docker.io/team/app"),
        ("library/team/app", "library/team/app", "docker.io/library/team/app"),
        ("test.com/foo", "test.com/foo", "test.com/foo"),
        ("test:5000/repo", "test:5000/repo", "test:5000/repo"),
        ("test:5000/repo:tag@" + SHA256,) + ("test:5000/repo:tag@" + SHA256,) * 2,
        ("host:5000/a/b@" + SHA512,) + ("host:5000/a/b@" + SHA512,) * 2,
        ("localhost/x", "localhost/x", "localhost/x"),
        ("localhost:80/x:y", "localhost:80/x:y", "localhost:80/x:y"),
        ("Registry/app", "Registry/app", "Registry/app"),
        ("EXAMPLE.com/app", "EXAMPLE.com/app", "EXAMPLE.com/app"),
        ("127.0.0.1:5000/docker/docker",) + ("127.0.0.1:5000/docker/docker",) * 2,
        ("[fc00::1]:5000/docker",) + ("[fc00::1]:5000/docker",) * 2,
        ("[2001:db8::1]/repo:tag",) + ("[2001:db8::1]/repo:tag",) * 2,
        ("xn--7o8h.com/myimage:xn--7o8h.com",) + ("xn--7o8h.com/myimage:xn--7o8h.com",) * 2,
        ("a-a/a-a", "a-a/a-a", "docker.io/a-a/a-a"),
        ("do__cker/a.b--c", "do__cker/a.b--c", "docker.io/do__cker/a.b--c"),
        ("foo_bar.com:8080", "foo_bar.com:8080", "docker.io/library/foo_bar.com:8080"),
        ("test.com:tag", "test.com:tag", "docker.io/library/test.com:tag"),
        ("test.com:5000", "test.com:5000", "docker.io/library/test.com:5000"),
        ("a:_", "a:_", "docker.io/library/a:_"),
        ("a:" + "x" * 128, "a:" + "x" * 128, "docker.io/library/a:" + "x" * 128),
        ("a:UPPER.Case-1_2", "a:UPPER.Case-1_2", "docker.io/library/a:UPPER.Case-1_2"),
        ("a@" + SHA256, "a@" + SHA256, "docker.io/library/a@" + SHA256),
        ("a:b@" + SHA256, "a:b@" + SHA256, "docker.io/library/a:b@" + SHA256),
        # Docker's short forms of these would be another registry's name, and an image id.
        ("docker.io/localhost/x", "docker.io/localhost/x", "docker.io/localhost/x"),
        (f"{HEX}:tag", f"docker.io/library/{HEX}:tag", f"docker.io/library/{HEX}:tag"),
    ],
)
def test_reference_is_completed_as_docker_completes_it(
    text: str, familiar: str, canonical: str
) -> None:
    reference = Reference.parse(text)
    assert reference.familiar == familiar
    assert reference.canonical == canonical


def test_parts() -> None:
    reference = Reference.parse(f"host:5000/a/b:1@{SHA256}")
    assert (reference.domain, reference.path) == ("host:5000", "a/b")
    assert (reference.tag, reference.digest) == ("1", SHA256)
    assert reference.name == "host:5000/a/b"
    assert reference.name_only().is_name_only
    assert reference.without_digest().familiar == "host:5000/a/b:1"
    assert reference.without_tag().familiar == f"host:5000/a/b@{SHA256}"


def test_default_tag_is_for_bare_names_only() -> None:
    assert Reference.parse("busybox").with_default_tag().familiar == "busybox:latest"
    assert Reference.parse("busybox:1").with_default_tag().familiar == "busybox:1"
    assert Reference.parse(f"a@{SHA256}").with_default_tag().familiar == f"a@{SHA256}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "invalid reference format"),
        (":justtag", "invalid reference format"),
        ("@" + SHA256, "invalid reference format"),
        ("repo@sha256:ffffffff", "invalid reference format"),
        ("validname@invaliddigest:" + "f" * 128, "unsupported digest algorithm"),
        ("repo@sha256:" + "f" * 63, "invalid checksum digest length"),
        ("repo@sha512:" + "f" * 64, "invalid checksum digest length"),
        ("repo@sha256:" + "F" * 64, "invalid checksum digest format"),
        ("https://github.com/docker/docker", "invalid reference format"),
        (
            "Busybox",
            "invalid reference format: repository name (library/Busybox) must be lowercase",
        ),
        (
            "docker/Docker:1",
            "invalid reference format: repository name (docker/Docker) must be lowercase",
        ),
        (
            "docker.io/docker/Docker",
            "invalid reference format: repository name (docker/Docker) must be lowercase",
        ),
        ("-foo", "invalid reference format"),
        ("-foo/bar", "invalid reference format"),
        ("foo-/bar", "invalid reference format"),
        ("foo/bar-", "invalid reference format"),
        ("-foo.com/bar", "invalid reference format"),
        ("foo..com/bar", "invalid reference format"),
        ("foo_bar.com/x", "invalid reference format"),
        ("host:/x", "invalid reference format"),
        ("host:port/x", "invalid reference format"),
        ("[fc00::1/x", "invalid reference format"),
        ("[fc00::1]5000/x", "invalid reference format"),
        ("[fc00::1%eth0]:5000/x", "invalid reference format"),
        ("docker///docker", "invalid reference format"),
        ("docker.io/docker///docker", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("a/b/", "invalid reference format"),
        ("/a", "invalid reference format"),
        ("a.", "invalid reference format"),
        ("a..b", "invalid reference format"),
        ("a___b", "invalid reference format"),
        ("a._b", "invalid reference format"),
        ("_a", "invalid reference format"),
        ("a:", "invalid reference format"),
        ("a:.b", "invalid reference format"),
        ("a:-b", "invalid reference format"),
        ("a:b:c", "invalid reference format"),
        ("a:b/c:d", "invalid reference format"),
        ("a:" + "x" * 129, "invalid reference format"),
        ("a@b@" + SHA256, "invalid reference format"),
        ("a b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        ("a:b\n", "invalid reference format"),
        ("äpfel", "invalid reference format"),
        ("a:٣", "invalid reference format"),
        ("a/" * 128 + "a", "repository name must not be more than 255 characters"),
        (
            HEX,
            f"invalid repository name ({HEX}), cannot specify 64-byte hexadecimal strings",
        ),
    ],
)
def test_refusal_has_dockers_sentence(text: str, sentence: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        Reference.parse(text)
    assert refused.value.message.startswith(sentence)


component = st.from_regex(r"[a-z0-9]{1,5}(?:(?:[._]|__|-{1,3})[a-z0-9]{1,5}){0,2}", fullmatch=True)
domain = st.from_regex(
    r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,4}[a-zA-Z0-9])"
    r"(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]{0,4}[a-zA-Z0-9])){0,2}(?::[0-9]{1,5})?"
    r"|\[[a-fA-F0-9:]{0,5}:[a-fA-F0-9:]{0,5}\](?::[0-9]{1,5})?",
    fullmatch=True,
)
tag = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", fullmatch=True)
digest = st.sampled_from([SHA256, SHA512])


@settings(deadline=None)
@given(
    st.none() | domain,
    st.lists(component, min_size=1, max_size=4),
    st.none() | tag,
    st.none() | digest,
)
def test_whatever_the_grammar_makes_is_read_and_reads_back_the_same(
    domain: str | None, components: list[str], tag: str | None, digest: str | None
) -> None:
    # A dot makes the first part a domain, and a domain has no underscore.
    assume(domain or len(components) == 1 or not ("." in components[0] and "_" in components[0]))
    text = "/".join(([domain] if domain else []) + components)
    text += f":{tag}" if tag is not None else ""
    text += f"@{digest}" if digest is not None else ""
    reference = Reference.parse(text)
    assert (reference.tag, reference.digest) == (tag, digest)
    for form in (reference.familiar, reference.canonical):
        again = Reference.parse(form)
        assert again == reference
        assert hash(again) == hash(reference)
        assert (again.domain, again.path) == (reference.domain, reference.path)


@settings(deadline=None)
@given(st.text(max_size=40) | st.text(alphabet="aA0.:/@_-[]f", max_size=40))
def test_any_text_is_a_reference_or_is_refused(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidParameter:
        return
    assert Reference.parse(reference.canonical) == reference


def test_digest_and_id_are_told_from_names() -> None:
    assert is_digest(SHA256)
    assert not is_digest(SHA256[:-1])
    assert not is_digest("md5:" + "0" * 32)
    assert is_image_id("a" * 64)
    assert not is_image_id("A" * 64)
    assert check_digest(SHA512) == SHA512


def test_tag_and_digest_that_are_set_are_checked() -> None:
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        Reference.parse("a").with_tag("-x")
    with pytest.raises(InvalidParameter, match="invalid checksum digest format"):
        Reference.parse("a").with_digest("sha256")


def test_import_is_light_enough_for_the_command_line() -> None:
    program = "import sys; import tiffin.image.reference; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not {"re", "typing", "dataclasses", "json", "enum"} & set(ran.stdout.split())
