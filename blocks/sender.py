"""A sender of webhooks: its secrets, and what it may say. How its messages are checked is in `deployments/console`."""

from __future__ import annotations

from prefect.blocks.core import Block
from pydantic import Field, SecretStr


class WebhookSender(Block):
    """Somebody who may send webhooks: a flight controller, a ground station. The block's name is the sender's."""

    _block_type_name = "Webhook sender"
    _block_type_slug = "webhook-sender"

    secret: SecretStr = Field(description="Signs its messages; `onblock hook sender NAME` makes one.", min_length=16)
    previous: SecretStr | None = Field(
        default=None, description="The secret before this one, which is still taken while the sender is changed over."
    )
    hooks: list[str] = Field(
        default=[], description="The hooks it may call, such as `flight-end`; empty stands for all."
    )
    devices: list[str] = Field(default=[], description="The devices it may speak for; empty stands for all.")
