"""A session's own certificates."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from parity_market.flower import make_certificates

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def test_the_server_is_vouched_for_by_the_sessions_root_and_no_other():
    one, other = (make_certificates("fl.example.org", name, now=NOW) for name in ("s1", "s2"))
    root, leaf = (x509.load_pem_x509_certificate(text.encode()) for text in (one.root, one.server))

    leaf.verify_directly_issued_by(root)

    assert x509.load_pem_x509_certificate(other.root.encode()).public_key() != root.public_key()
    assert ssl.create_default_context(cadata=one.root).cert_store_stats()["x509_ca"] >= 1


def test_the_server_is_valid_for_its_host_and_for_loopback():
    leaf = x509.load_pem_x509_certificate(make_certificates("192.0.2.7", "s1", now=NOW).server.encode())

    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert {str(one) for one in names.get_values_for_type(x509.IPAddress)} == {"192.0.2.7", "127.0.0.1", "::1"}
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_the_root_may_sign_no_further_authority():
    root = x509.load_pem_x509_certificate(make_certificates("localhost", "s" * 200, now=NOW).root.encode())

    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert isinstance(root.public_key(), ec.EllipticCurvePublicKey)
