"""Who a client is for the server: behind trusted proxies, behind others, and at home."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from prunella.device_runtime.base.errors import UsageError
from prunella.device_runtime.servers.clients import Proxies
from prunella.device_runtime.servers.http_api import create_app
from prunella.device_runtime.servers.service import Limits, TranscriptionService

PROXY = "10.0.0.1"
URL = "/v1/audio/transcriptions"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ((), PROXY, "1.2.3.4", PROXY),
        ((), "127.0.0.1", "1.2.3.4", "127.0.0.1"),
        ((PROXY,), PROXY, "", PROXY),
        ((PROXY,), PROXY, "1.2.3.4", "1.2.3.4"),
        ((PROXY,), "10.0.0.2", "1.2.3.4", "10.0.0.2"),
        ((PROXY,), PROXY, "6.6.6.6, 1.2.3.4", "1.2.3.4"),  # the first is what the client wrote itself
        ((PROXY,), PROXY, "6.6.6.6, 1.2.3.4, 10.0.0.1", "1.2.3.4"),
        (("10.0.0.0/8",), PROXY, "6.6.6.6,1.2.3.4 ,10.9.9.9", "1.2.3.4"),
        ((f"{PROXY}, 10.0.0.2",), PROXY, "1.2.3.4, 10.0.0.2", "1.2.3.4"),
        ((PROXY,), PROXY, "10.0.0.1", PROXY),
        ((PROXY,), PROXY, "1.2.3.4:5678", "1.2.3.4"),
        ((PROXY,), PROXY, "[2001:db8:1:2:3::4]:5678", "2001:db8:1:2::"),
        ((PROXY,), PROXY, "unknown", PROXY),
        ((PROXY,), PROXY, "1.2.3.4, _hidden", PROXY),
        ((PROXY,), PROXY, "1.2.3.4,", PROXY),
        ((PROXY,), f"::ffff:{PROXY}", "::ffff:1.2.3.4", "1.2.3.4"),
        (("fd00::1",), "fd00::1", "1.2.3.4", "1.2.3.4"),
        ((), "2001:db8:1:2:3::4", "", "2001:db8:1:2::"),
        ((), "2001:db8:1:2:ffff::9", "", "2001:db8:1:2::"),
        ((), "testclient", "1.2.3.4", "testclient"),
    ],
)
def test_the_client_is_the_last_that_no_trusted_proxy_is(trusted, peer, forwarded, client):
    assert Proxies.of(trusted).client(peer, forwarded) == client


@pytest.mark.parametrize("word", ["nginx", "*", "10.0.0.1:80", "10.0.0.0/40", "10.0.0.1;10.0.0.2"])
def test_what_is_no_address_is_refused(word):
    with pytest.raises(UsageError, match="no address of a proxy"):
        Proxies.of([word])


@pytest.mark.parametrize(("trusted", "statuses"), [((PROXY,), (400, 400, 429)), ((), (429, 429, 429))])
def test_requests_are_counted_by_client(trusted, statuses):
    service = TranscriptionService(None, "tiny", limits=Limits(requests=9, requests_per_client=1))
    app = create_app(service, proxies=Proxies.of(trusted))
    client = TestClient(app, base_url="http://localhost", client=(PROXY, 1))

    def status(*forwarded: str) -> int:
        headers = [("x-forwarded-for", address) for address in forwarded]
        return client.post(URL, files={"file": b"no audio"}, headers=headers).status_code

    with service.slot("1.2.3.4" if trusted else PROXY):
        seen = (status("1.2.3.5"), status("1.2.3.4", "1.2.3.5"), status("1.2.3.5, 1.2.3.4"))
    assert seen == statuses
