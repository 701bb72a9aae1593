"""The user's own modules: who runs a command, or wrote the policy, names them."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from modcap.core.errors import InputError, Unavailable
from modcap.core.messages import first_line

__all__ = ["user_module"]


def user_module(module: str, option: str, how: str) -> Any:
    """Imports ``module``, from the working directory too.

    Args:
        module: its name, with dots.
        option: what messages call the place where it was named, such as ``--arch lab.nets:…``.
        how: what messages say that may be given there.

    Raises:
        Unavailable: it is not there.
        InputError: it fails while it is imported.
    """
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        return import_module(module)
    except ImportError as error:
        raise Unavailable(f"{option} cannot be imported ({error}): {how}") from error
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{option} cannot be imported ({type(error).__name__}: {first_line(error)}): "
            f"mend that module, or {how}"
        ) from error
    finally:
        sys.path.remove(folder)
