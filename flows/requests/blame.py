"""Who is to blame where a checkpoint of a scan cannot be used: it, or what it needs."""

from __future__ import annotations

from typing import Literal

from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ConfigDict

from modcap.core.errors import InputError, ModcapError, Unavailable
from modcap.core.messages import first_line
from modcap.flows.requests.request_images import BadImages
from modcap.tasks.storage.objects import Missing

__all__ = ["Fault", "fault_of"]


class Fault(BaseModel):
    """``bad`` is a checkpoint that stays so until it changes; what is ``waiting`` or has ``failed``
    is tried again by the next pass."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state: Literal["bad", "failed", "waiting"]
    reason: str


def fault_of(error: BaseException, own_images: bool) -> Fault:
    """What ``error``, raised while a checkpoint was read, makes of it.

    Args:
        error: whatever was raised; what nobody foresaw is the checkpoint's fault.
        own_images: whether its manifest, not the policy, chose the images.
    """
    state: Literal["bad", "failed", "waiting"]
    if isinstance(error, Missing) and own_images:
        state = "waiting"
    elif isinstance(error, BadImages):
        state = "bad" if own_images else "failed"
    elif isinstance(error, ModcapError):
        own = isinstance(error, InputError) and not isinstance(error, Unavailable)
        state = "bad" if own else "failed"
    else:
        state = "failed" if isinstance(error, BotoCoreError | ClientError) else "bad"
    return Fault(state=state, reason=said_of(error))


def said_of(error: BaseException) -> str:
    """What an error says, on one line."""
    said = str(error)
    if not isinstance(error, ModcapError):
        said = f"it cannot be used: {type(error).__name__}: {first_line(error)}"
    return " ".join(said.split())
