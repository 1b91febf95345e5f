"""Token issuers other than our own registry: what they are asked, and what they are told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry.conftest import Connect, MadeImage, Start, layer_tar
from registry.faulty import FaultyProxy
from registry.issuer import PASSWORD, REFRESH, USER, Guarded, Issuer
from tiffin.errors import Forbidden, TiffinError, Unauthorized
from tiffin.registry.authorization import Authorization, parse_challenges
from tiffin.registry.client import Registry
from tiffin.registry.credentials import Credentials

IMAGE = MadeImage([layer_tar({"etc/a": b"a" * 50_000}), layer_tar({"etc/b": b"b" * 9})])
RIGHT = Credentials(USER, PASSWORD)


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with Issuer() as made:
        yield made


@pytest.fixture
def guarded(registry: Registry, issuer: Issuer) -> Iterator[Guarded]:
    IMAGE.push(registry, "app", "v1")
    with Guarded(registry.host, issuer) as made:
        yield made


def pull(client: Registry) -> None:
    assert client.manifest("app", "v1").digest == IMAGE.digest
    for layer, blob in zip(IMAGE.layers, IMAGE.blobs, strict=True):
        with client.blob("app", layer) as stream:
            assert b"".join(iter(stream.read, b"")) == blob


def test_a_token_for_each_scope_is_asked_for_once(
    issuer: Issuer, guarded: Guarded, connect: Connect
) -> None:
    client = connect(guarded.address, RIGHT)
    pull(client)
    IMAGE.push(client, "app", "v2")
    IMAGE.push(client, "app", "v3")
    pulling, pushing = issuer.scopes
    assert pulling == {"repository:app:pull"}
    assert "repository:app:pull,push" in pushing
    for _, parameters in issuer.asked:
        assert parameters["service"] == ["the service"]
        assert parameters["account"] == [USER]
    # The password went to the issuer only.
    assert all((sent or "").startswith("Basic ") for sent in issuer.authorizations)
    assert all(sent is None or sent.startswith("Bearer ") for sent in guarded.authorizations)


def test_nobody_may_pull_and_not_push(guarded: Guarded, issuer: Issuer, connect: Connect) -> None:
    client = connect(guarded.address)
    pull(client)
    assert issuer.authorizations == [None]
    with pytest.raises(Unauthorized, match="401"):
        IMAGE.push(client, "app", "v2")


def test_a_token_that_is_used_up_is_replaced(
    registry: Registry, issuer: Issuer, connect: Connect
) -> None:
    IMAGE.push(registry, "app", "v1")
    with Guarded(registry.host, issuer, uses=2) as guarded:
        client = connect(guarded.address, RIGHT)
        for _ in range(3):
            pull(client)
        assert len(issuer.tokens) == 5


def test_a_token_without_an_hour_is_not_kept_for_long(
    guarded: Guarded, issuer: Issuer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    issuer.lifetime = 0  # which counts as a minute
    client = connect(guarded.address, RIGHT)
    pull(client)
    assert len(issuer.tokens) == 1
    from tiffin.registry import authorization

    now = authorization.time.monotonic
    monkeypatch.setattr(authorization.time, "monotonic", lambda: now() + 55)
    pull(client)
    assert len(issuer.tokens) == 2


def test_wrong_credentials(guarded: Guarded, connect: Connect) -> None:
    for wrong in (Credentials(USER, "guess-word"), Credentials(identity_token="guess-word")):
        with pytest.raises(Unauthorized, match="refuses the credentials") as caught:
            connect(guarded.address, wrong).manifest("app", "v1")
        assert "guess-word" not in str(caught.value)


def test_a_login_gets_a_refresh_token_which_is_used_by_post(
    guarded: Guarded, issuer: Issuer, connect: Connect
) -> None:
    assert connect(guarded.address, RIGHT).login() == REFRESH
    (method, query) = issuer.asked[0]
    assert (method, query["offline_token"]) == ("GET", ["true"])
    assert "scope" not in query
    del issuer.asked[:], issuer.authorizations[:]
    # Whoever has that needs no password.
    client = connect(guarded.address, Credentials(USER, identity_token=REFRESH))
    pull(client)
    IMAGE.push(client, "app", "v2")
    assert [method for method, _ in issuer.asked] == ["POST", "POST"]
    assert issuer.authorizations == [None, None]
    form = issuer.asked[0][1]
    assert form["grant_type"] == ["refresh_token"]
    assert form["refresh_token"] == [REFRESH]
    assert form["service"] == ["the service"]
    assert form["scope"] == ["repository:app:pull"]
    assert form["client_id"]


@pytest.mark.parametrize("member", ["token", "access_token"])
def test_issuers_that_are_older_than_oauth(
    registry: Registry, connect: Connect, member: str
) -> None:
    IMAGE.push(registry, "app", "v1")
    with Issuer(oauth=False, member=member) as issuer, Guarded(registry.host, issuer) as guarded:
        credentials = Credentials(USER, PASSWORD, identity_token=REFRESH)
        pull(connect(guarded.address, credentials))
        assert [method for method, _ in issuer.asked] == ["POST", "GET"]


def test_a_token_given_as_it_is(guarded: Guarded, issuer: Issuer, connect: Connect) -> None:
    issuer.tokens["from-elsewhere"] = frozenset({"repository:app:pull"})
    pull(connect(guarded.address, Credentials(registry_token="from-elsewhere")))
    assert issuer.asked == []


def test_a_blob_elsewhere_gets_no_token(
    registry: Registry, issuer: Issuer, connect: Connect
) -> None:
    IMAGE.push(registry, "app", "v1")
    with (
        FaultyProxy(registry.host) as elsewhere,
        Guarded(registry.host, issuer, elsewhere=elsewhere.address) as guarded,
    ):
        pull(connect(guarded.address, RIGHT))
        assert elsewhere.authorizations == [None, None]
        assert any((sent or "").startswith("Bearer ") for sent in guarded.authorizations)


def test_a_challenge_elsewhere_is_not_answered(
    registry: Registry, start_registry: Start, connect: Connect, issuer: Issuer
) -> None:
    IMAGE.push(registry, "app", "v1")
    with (
        Guarded(registry.host, issuer) as elsewhere,
        Guarded(registry.host, issuer, elsewhere=elsewhere.address) as guarded,
    ):
        client = connect(guarded.address, RIGHT)
        client.manifest("app", "v1")
        tokens = len(issuer.tokens)
        with pytest.raises(TiffinError, match="401") as caught:
            pull(client)
        assert elsewhere.authorizations == [None]
        assert len(issuer.tokens) == tokens
        # What signs the address is no part of the message.
        assert "secret" not in str(caught.value)


def test_a_realm_without_tls_gets_no_password_of_a_registry_with_tls() -> None:
    def ask(*_: object) -> tuple[int, bytes]:
        raise AssertionError("the realm was asked")

    authorization = Authorization("registry.test", RIGHT, ask, secure=True)
    challenges = parse_challenges(['Bearer realm="http://issuer.test/auth",service="s"'])
    with pytest.raises(Forbidden, match="no TLS"):
        authorization.answer(challenges, frozenset({"repository:app:pull"}), None)
