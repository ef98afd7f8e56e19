"""Trust in a master's own certificate."""

from __future__ import annotations

import ssl
import warnings
from pathlib import Path

import httpx

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
