"""Certificate authorities that a service's own client trusts, by the variables that it reads.

They are those of boto3, requests (MLflow) and httpx (Prefect): checks of our own trust whom these
trust.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from modcap.core.errors import InputError

__all__ = ["check_authorities", "mend_connection", "trusting"]

_VARIABLES = {  # of each client, the first that is set
    "S3": ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"),
    "MLflow": ("MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "Prefect": ("PREFECT_API_SSL_CERT_FILE", "SSL_CERT_FILE"),
}
_UNTRUSTED = ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed")


def check_authorities() -> None:
    """That every file of authorities which the environment names is there, and is one.

    Raises:
        InputError: it is not; the line names the variable.
    """
    for variable in dict.fromkeys(name for names in _VARIABLES.values() for name in names):
        if file := os.environ.get(variable):
            _context(variable, file)


def trusting(service: str) -> ssl.SSLContext:
    """What a connection to S3, MLflow or Prefect trusts."""
    for variable in _VARIABLES[service]:
        if file := os.environ.get(variable):
            return _context(variable, file)
    return ssl.create_default_context()


def _context(variable: str, file: str) -> ssl.SSLContext:
    folder = Path(file).is_dir()
    try:
        if folder:
            return ssl.create_default_context(capath=file)
        return ssl.create_default_context(cafile=file)
    except OSError as error:  # ssl.SSLError is one
        said = "there is no such file" if isinstance(error, FileNotFoundError) else "it is none"
        raise InputError(
            f"{variable}={file}: {said}: name the file (PEM) of the certificate authority"
        ) from None


def mend_connection(service: str, said: str, usual: str) -> str:
    """How to mend what a client ``said``: an authority that is not trusted, or the ``usual``."""
    if any(word in said for word in _UNTRUSTED):
        return f"name the file of its certificate authority in {_VARIABLES[service][0]}"
    return usual
