"""Trust in a master's own certificate."""

from __future__ import annotations

import http.server
import ssl
import threading
import warnings
from pathlib import Path

import httpx
import pytest

import paceline as pl
from paceline.testing.certificate import make_certificate
from paceline.tls import trusting


def test_a_given_certificate_is_trusted_alone_and_httpx_takes_it_without_a_warning(tmp_path: Path) -> None:
    made = make_certificate("127.0.0.1", tmp_path)
    context = trusting(str(made.cert))
    assert [ca["subject"] for ca in context.get_ca_certs()] == [((("commonName", "paceline-testing"),),)]
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        httpx.Client(verify=context).close()


def test_a_master_whose_certificate_is_not_trusted_is_told_from_one_that_is_not_there(tmp_path: Path) -> None:
    made = make_certificate("127.0.0.1", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(pl.MasterUnreachable, match="CERTIFICATE_VERIFY_FAILED") as caught:
            pl.Client(f"https://127.0.0.1:{server.server_port}", "any")
    assert "--ca" in caught.value.remedy
