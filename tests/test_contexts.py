"""Does a context verify what it should, and is it for the side that uses it?"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import pytest
from certificates import authority, client_context, server_context

from wspy.contexts import check_side, checked_context, checked_server_context, default_context
from wspy.contexts import client_context as context_that_trusts
from wspy.contexts import server_context as context_of_files
from wspy.tls import TLS

if TYPE_CHECKING:
    from pathlib import Path


def exchange(client: TLS, server: TLS) -> None:
    """Do the handshake."""
    while not (client.is_open and server.is_open):
        server.receive(client.take())
        client.receive(server.take())


def test_contexts_have_a_side() -> None:
    for context, is_server in ((server_context(), True), (client_context(), False)):
        check_side(context, server_side=is_server)
        with pytest.raises(ValueError, match="other side"):
            check_side(context, server_side=not is_server)


def test_contexts() -> None:
    for check in (checked_context, checked_server_context):
        context = server_context()
        context.options &= ~ssl.OP_NO_RENEGOTIATION
        assert check(context) is context
        assert context.options & ssl.OP_NO_RENEGOTIATION
        with pytest.raises(TypeError, match="create_default_context"):
            check("cert.pem")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other side"):
        checked_server_context(client_context())
    default = default_context()
    assert default is default_context()
    assert (default.verify_mode, default.check_hostname) == (ssl.CERT_REQUIRED, True)
    with pytest.raises(ssl.SSLCertVerificationError):
        exchange(TLS(default, server_side=False, server_hostname="localhost"), TLS(server_context(), server_side=True))


def test_contexts_of_files(tmp_path: Path) -> None:
    certificate, key, trusted = (tmp_path / name for name in ("certificate", "key", "trusted"))
    issued = authority().issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(certificate)
    issued.private_key_pem.write_to_path(key)
    authority().cert_pem.write_to_path(trusted)
    client = context_that_trusts(str(trusted))
    for trusts in (None, str(trusted)):
        context = context_of_files(str(certificate), str(key), trusts)
        assert context.verify_mode == (ssl.CERT_REQUIRED if trusts else ssl.CERT_NONE)
        both = TLS(client, server_side=False, server_hostname="localhost"), TLS(context, server_side=True)
        if trusts is None:
            exchange(*both)
            continue
        with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
            exchange(*both)
    with pytest.raises(OSError, match="No such file"):
        context_of_files(str(tmp_path / "none"), None, None)
