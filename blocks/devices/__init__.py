"""The devices: storages that come and go. `AnySource` is what a job may name as its source; a new device is one file,
its lines here and the contract suite."""

from blocks.devices.base import Device
from blocks.devices.http_camera import HttpCamera
from blocks.devices.mounted_card import MountedCard
from blocks.devices.osc_camera import OscCamera
from blocks.storage import AnyStorage

AnySource = AnyStorage | MountedCard | OscCamera | HttpCamera
"""What a job's source may be. Nothing is ever put on a device: it is no destination."""
DEVICES: dict[str, type[Device]] = {
    "mounted-card": MountedCard,
    "osc-camera": OscCamera,
    "http-camera": HttpCamera,
}
"""By the `type` that a JOB.yaml gives: the slug of the block type."""

__all__ = ["DEVICES", "AnySource", "Device", "HttpCamera", "MountedCard", "OscCamera"]
