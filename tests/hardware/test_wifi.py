from __future__ import annotations

from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from blocks.errors import (
    ConfigError,
    NetworkError,
    NotFound,
    OnblockError,
    PermissionRefused,
    ToolMissing,
    UnknownError,
)
from blocks.hardware import wifi as module
from blocks.hardware.wifi import PROFILE, NetworkManager, WifiLink, nmcli_failure, terse
from tests.hardware.nmcli import NetworkManagerState, _escaped, on_path

PASSWORD = "s3cret: with \\ and -"


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkManagerState:
    """A NetworkManager whose `nmcli` is the first on PATH."""
    state = NetworkManagerState(tmp_path)
    monkeypatch.setenv("PATH", on_path(state.program))
    return state


def wifi(ssid: str = "onblock-cam-01", interface: str = "wlan0", password: str = PASSWORD) -> NetworkManager:
    return NetworkManager(ssid, SecretStr(password), interface)


def test_our_own_network_is_opened_and_closed(there: NetworkManagerState):
    one = wifi()
    assert not one.is_running()
    one.start()
    assert one.is_running()
    keys = there.read()["connections"][PROFILE]
    assert (keys["ssid"], keys["ifname"], keys["802-11-wireless.mode"], keys["autoconnect"]) == (
        "onblock-cam-01", "wlan0", "ap", "no",
    )  # fmt: skip
    one.stop()
    assert not one.is_running()
    assert there.read()["connections"] == {"home": {"active": "yes", "ssid": "home"}}
    one.stop()  # once more: nothing to do


def test_the_password_is_on_no_command_line(there: NetworkManagerState):
    wifi().start()
    assert not [c for c in there.calls if any(PASSWORD in word for word in c["argv"])]
    assert [c["stdin"] for c in there.calls if c["stdin"]] == [f"802-11-wireless-security.psk:{PASSWORD}\n"]


def test_a_connection_that_was_left_behind_is_made_anew(there: NetworkManagerState):
    wifi(ssid="old").start()
    wifi(ssid="new").start()
    assert there.read()["connections"][PROFILE]["ssid"] == "new"


def test_a_network_that_cannot_be_opened_leaves_nothing_behind(there: NetworkManagerState):
    there.set(fails={"connection up": (4, "Error: Connection activation failed: no device\n")})
    with pytest.raises(NetworkError, match="could not be opened: Connection activation failed: no device") as caught:
        wifi().start()
    assert list(there.read()["connections"]) == ["home"] and PASSWORD not in str(caught.value)


def test_an_interface_that_is_not_there(there: NetworkManagerState):
    with pytest.raises(NotFound, match="Device not found"):
        wifi(interface="wlan7").start()


def test_the_network_it_is_in(there: NetworkManagerState):
    assert wifi().link() == WifiLink("home", 71)
    there.set(connections={"a": {"active": "no", "ssid": "b"}})
    assert wifi().link() is None


def test_nmcli_that_hangs_is_ended(there: NetworkManagerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    there.program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 1000\n")
    monkeypatch.setattr(module, "LINK_S", 2)
    with pytest.raises(NetworkError, match="did not end within 2 s"):
        wifi().link()
    assert not (tmp_path / "pid").exists() or not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_names_that_would_break_the_output_or_be_options(there: NetworkManagerState):
    there.set(connections={"a:b\\c": {"active": "yes", "ssid": "caf\u00e9: 5\\GHz"}})
    assert wifi().link() == WifiLink("caf\u00e9: 5\\GHz", 71)
    wifi(ssid="-x").start()
    assert there.read()["connections"][PROFILE]["ssid"] == "-x"


@given(st.lists(st.text(st.characters(exclude_characters="\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029")), min_size=1))
def test_fields_come_back_as_they_were(fields: list[str]):
    assert terse(":".join(map(_escaped, fields))) == fields


@pytest.mark.parametrize(
    ("code", "said", "kind"),
    [
        (1, "Error: something", UnknownError), (2, "", ConfigError), (3, "", NetworkError), (4, "", NetworkError),
        (5, "", NetworkError), (6, "", NetworkError), (7, "", UnknownError), (8, "", ToolMissing), (10, "", NotFound),
        (1, "Error: Failed to add 'x': Insufficient privileges", PermissionRefused),
        (4, "Error: Not authorized to control networking.", PermissionRefused), (-9, "", UnknownError),
    ],
)  # fmt: skip
def test_exit_codes(code: int, said: str, kind: type[OnblockError]):
    failure = nmcli_failure(code, said)
    assert type(failure) is kind and failure.todo
    assert str(failure).startswith("nmcli: ")


def test_without_nmcli():
    with pytest.raises(ToolMissing, match="network-manager"):
        NetworkManager("a", SecretStr("12345678"), nmcli="nmcli-of-nobody").is_running()


@pytest.mark.parametrize(("ssid", "password"), [("", "12345678"), ("x" * 33, "12345678"), ("a", "1234567"), ("a", "x" * 64), ("a", "1234567\n"), ("a", "1234567\u00e9")])  # fmt: skip
def test_names_and_passwords_that_no_network_takes(ssid: str, password: str):
    with pytest.raises(ConfigError) as caught:
        wifi(ssid=ssid, password=password)
    assert password not in str(caught.value)
