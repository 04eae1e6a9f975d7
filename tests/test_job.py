"""The form of a job: what is refused, how clearly, and that no file of a device leads out of the destination."""

from __future__ import annotations

import fnmatch
import os
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import TypeAdapter, ValidationError

from blocks import names
from blocks.devices import DEVICES
from blocks.errors import ConfigError, OnblockError
from blocks.storage import STORAGES, LocalStorage
from blocks.storage.base import FileInfo
from flows.transfer.form import Duration
from flows.transfer.job import TOKENS, Target, TransferJob, load_job
from flows.transfer.patterns import compile_pattern
from tests.contract.data import BYTES, HOSTILE
from tests.servers.base import free_port
from tests.test_names import ANYTHING, PATH

GOOD: dict[str, Any] = {
    "name": "cards",
    "source": {"type": "local-storage", "root": "/media/card"},
    "destination": {"type": "local-storage", "root": "/data"},
}


def write(folder: Path, data: object) -> Path:
    path = folder / "JOB.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, allow_unicode=True), "utf-8")
    return path


def job(**fields: Any) -> TransferJob:
    return TransferJob(
        **{"name": "cards", "source": LocalStorage(root="/a"), "destinations": [LocalStorage(root="/b")], **fields}
    )


# -- JOB.yaml --------------------------------------------------------------------------------------------------------------


def test_a_job_with_everything(tmp_path: Path) -> None:
    found = load_job(
        write(
            tmp_path,
            """
            name: flight-recorder_7
            source: {type: local-storage, root: /media/card, require_mount: true}
            destinations:
              - {type: local-storage, root: /data/first, create_root: true}
              - {type: local-storage, root: /data/second}
            device: camera-1
            folder: /DCIM/
            include: ["*.mp4", "re:.*\\\\.wav"]
            exclude: ["**/.Trash/**"]
            recursive: false
            min_size: 1 KiB
            max_size: 2 GB
            min_age: 10 min
            max_age: 30 d
            settle: {quiet: 1h 30min, sentinel: "*.complete", ignore_suffixes: [.part]}
            dedup: content
            verify: readback
            on_conflict: fail
            path: "{flight}/{device}/{date}/{folder}/{name}"
            manifest: null
            schedule: {cron: "0 */6 * * 1-5", timezone: Europe/Berlin}
            shipping: {large: 64MiB, max_files: 10, max_bytes: 1 GiB, at_once: 4}
            """,
        )
    )
    assert found.folder == "DCIM"
    assert [d.place() for d in found.destinations] == ["local:/data/first", "local:/data/second"]
    assert (found.min_size, found.max_size) == (1024, 2_000_000_000)
    assert (found.min_age, found.max_age) == (timedelta(minutes=10), timedelta(days=30))
    assert found.settle.quiet == timedelta(minutes=90)
    assert found.needs() == {"flight", "device"}
    assert str(found.zone()) == "Europe/Berlin"
    dumped = found.model_dump(mode="json")
    assert TransferJob.model_validate(dumped).model_dump(mode="json") == dumped  # as a parameter goes through Prefect


def test_the_least_a_job_can_be(tmp_path: Path) -> None:
    found = load_job(write(tmp_path, GOOD))
    assert found.manifest == "checksums.sha256"
    assert found.needs() == set()
    assert Target(found).path_of(FileInfo("DCIM/a.mp4", 1, 2)) == "DCIM/a.mp4"


OTHER = {"type": "local-storage", "root": "/other"}
BAD: dict[str, tuple[dict[Any, Any], str, str]] = {
    # what is wrong: (keys put over GOOD, the key the error must name, a word it must hold)
    "unknown key": ({"destinaton": OTHER}, "destinaton", "no such key"),
    "unknown key of a part": ({"settle": {"quite": "2s"}}, "settle.quite", "no such key"),
    "a key that is a number": ({1: 2}, "1", "Keys"),
    "no name": ({"name": None}, "name", "string"),
    "name is a number": ({"name": 7}, "name", "string"),
    "name is a list": ({"name": ["a"]}, "name", "string"),
    "name leaves": ({"name": "../x"}, "name", "letters"),
    "name has a blank": ({"name": "my job"}, "name", "letters"),
    "name is a line too many": ({"name": "a\n"}, "name", "letters"),
    "bad device": ({"device": "-rf"}, "device", "letters"),
    "include is a string": ({"include": "*.mp4"}, "include", "list"),
    "recursive is a word": ({"recursive": "perhaps"}, "recursive", "true or false"),
    "bad regular expression": ({"include": ["re:("]}, "include", "regular expression"),
    "regular expression too large": ({"include": ["re:a{99999999999999999999}"]}, "include", "regular expression"),
    "bad set": ({"exclude": ["[z-a]"]}, "exclude", "[z-a]"),
    "empty pattern": ({"exclude": [""]}, "exclude", "empty"),
    "a pattern of a slash": ({"exclude": ["/"]}, "exclude", "empty"),
    "bad size": ({"min_size": "much"}, "min_size", "no size"),
    "negative size": ({"min_size": -1}, "min_size", "no size"),
    "negative large": ({"shipping": {"large": -5}}, "shipping.large", "no size"),
    "a size without a number": ({"min_size": "large"}, "min_size", "1 MiB"),
    "a size of no unit": ({"min_size": "3 pounds"}, "min_size", "500 KB"),
    "bad duration": ({"min_age": "soon"}, "min_age", "duration"),
    "endless duration": ({"min_age": "99999999999999999 d"}, "min_age", "duration"),
    "negative duration": ({"max_age": -3}, "max_age", "0"),
    "min over max size": ({"min_size": "2 MB", "max_size": "1 MB"}, "min_size", "larger"),
    "min over max age": ({"min_age": "2 d", "max_age": "1 h"}, "min_age", "longer"),
    "unknown verify": ({"verify": "maybe"}, "verify", "checksum"),
    "unknown conflict": ({"on_conflict": "overwrite"}, "on_conflict", "rename"),
    "no cron": ({"schedule": {"timezone": "UTC"}}, "schedule.cron", "required"),
    "cron of words": ({"schedule": {"cron": "every day"}}, "schedule.cron", "cron"),
    "cron with a bad weekday": ({"schedule": {"cron": "0 0 * * 8"}}, "schedule.cron", "cron"),
    "cron with a bad weekday name": ({"schedule": {"cron": "0 0 * * MOO"}}, "schedule.cron", "cron"),
    "cron with a bad minute": ({"schedule": {"cron": "60 * * * *"}}, "schedule.cron", "cron"),
    "cron of six fields": ({"schedule": {"cron": "0 0 0 * * *"}}, "schedule.cron", "five"),
    "cron of four fields": ({"schedule": {"cron": "0 0 * *"}}, "schedule.cron", "five"),
    "cron by nickname": ({"schedule": {"cron": "@daily"}}, "schedule.cron", "five"),
    "cron that never comes": ({"schedule": {"cron": "0 0 30 2 *"}}, "schedule.cron", "cron"),
    "empty cron": ({"schedule": {"cron": ""}}, "schedule.cron", "five"),
    "bad time zone": ({"schedule": {"cron": "0 0 * * *", "timezone": "Mars/Base"}}, "schedule.timezone", "Berlin"),
    "time zone that is a path": (
        {"schedule": {"cron": "0 0 * * *", "timezone": "../UTC"}},
        "schedule.timezone",
        "IANA",
    ),
    "template leaves": ({"path": "../{name}"}, "path", "leave"),
    "template leaves in the middle": ({"path": "a/../../{name}"}, "path", "leave"),
    "absolute template": ({"path": "/data/{name}"}, "path", "absolute"),
    "template without a name": ({"path": "{folder}/{date}"}, "path", "{name}"),
    "empty template": ({"path": ""}, "path", "{name}"),
    "template with an unknown token": ({"path": "{nam}"}, "path", "{nam}"),
    "template with an attribute": ({"path": "{name.__class__}"}, "path", "token"),
    "template with an index": ({"path": "{name[0]}"}, "path", "token"),
    "template with a conversion": ({"path": "{name!r}"}, "path", "token"),
    "template with a format": ({"path": "{name:>99999999}"}, "path", "token"),
    "template with a number": ({"path": "{0}{name}"}, "path", "token"),
    "template that does not close": ({"path": "{name"}, "path", "template"),
    "manifest is a path": ({"manifest": "../sums"}, "manifest", "leave"),
    "manifest in a folder": ({"manifest": "a/sums"}, "manifest", "file name"),
    "folder leaves": ({"folder": "a/../.."}, "folder", "leave"),
    "no destination": ({"destination": None}, "destination", ""),
    "no destinations": ({"destinations": []}, "destination", ""),
    "both": ({"destinations": [OTHER]}, "destination", "both"),
    "too many destinations": (
        {"more_destinations": [{**OTHER, "root": f"/d{n}"} for n in range(8)]},
        "more_destinations",
        "7",
    ),
    "a further destination of no type": ({"more_destinations": [{"root": "/x"}]}, "more_destinations.0", "type"),
    "source and destination are the same": ({"source": {"type": "local-storage", "root": "/data/"}}, "source", "same"),
    "source is a number": ({"source": 7}, "source", ""),
    "source is a list": ({"source": [OTHER]}, "source", ""),
    "source of no type": ({"source": {"root": "/x"}}, "source", "type"),
    "source of an unknown type": ({"source": {"type": "ftp", "root": "/x"}}, "ftp", "local-storage"),
    "source of a strange type": ({"source": {"type": ["x"], "root": "/x"}}, "type", "local-storage"),
    "source without root": ({"source": {"type": "local-storage"}}, "root", "required"),
    "source with an unknown key": ({"source": {**OTHER, "rooot": 1}}, "rooot", "no key"),
    "source with strange keys": ({"source": {**OTHER, 1: 2, "rooot": 1}}, "key", "no key"),
    "source with a relative root": ({"source": {**OTHER, "root": "x"}}, "root", "absolute"),
    "source with a wrong type": ({"source": {**OTHER, "root": 7}}, "root", "string"),
    "source by a strange name": ({"source": "card"}, "card", "TYPE/NAME"),
    "source by name without a server": ({"source": "local-storage/card"}, "local-storage/card", "PREFECT_API_URL"),
    "too many at once": ({"shipping": {"at_once": 17}}, "shipping.at_once", "16"),
    "no files at once": ({"shipping": {"max_files": 0}}, "shipping.max_files", "1"),
    "no room for files": ({"shipping": {"max_bytes": -1}}, "shipping.max_bytes", "no size"),
}


@pytest.mark.parametrize("wrong", BAD)
def test_a_bad_job_is_one_clear_error(tmp_path: Path, wrong: str) -> None:
    over, key, word = BAD[wrong]
    path = write(tmp_path, {**GOOD, **over})
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    said = str(caught.value)
    assert caught.value.path == str(path)
    assert str(path) in said
    assert key in said
    assert word in said
    assert "Traceback" not in said
    assert "pydantic" not in said
    assert "\n" not in said


@pytest.mark.parametrize("several", [[], OTHER, "local-storage/x", None])
def test_destinations_are_a_list_of_some(tmp_path: Path, several: object) -> None:
    data = {k: v for k, v in GOOD.items() if k != "destination"}
    with pytest.raises(ConfigError, match="a list of one or more storages"):
        load_job(write(tmp_path, {**data, "destinations": several}))


def test_the_form_shows_a_selector_for_each_storage() -> None:
    """Prefect's UI shows a union of blocks as tabs with a selector, but not among the items of a list."""
    schema = TransferJob.model_json_schema()
    for key, classes in (("source", [*STORAGES.values(), *DEVICES.values()]), ("destination", STORAGES.values())):
        assert [s["$ref"].rpartition("/")[2] for s in schema["properties"][key]["anyOf"]] == [
            cls.__name__ for cls in classes
        ]
    assert schema["required"] == ["name", "source", "destination"]
    assert "destinations" not in schema["properties"]
    assert all(p.get("description") and p.get("title", True) for p in schema["properties"].values())


def test_two_same_destinations(tmp_path: Path) -> None:
    data = {k: v for k, v in GOOD.items() if k != "destination"}
    for twin in ("/other", "/other/", "/x/../other"):
        path = write(tmp_path, {**data, "destinations": [OTHER, {**OTHER, "root": twin}]})
        with pytest.raises(ConfigError, match="same place"):
            load_job(path)


def test_a_storage_of_a_server_that_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ConfigError, match="PREFECT_API_URL") as caught:
        load_job(write(tmp_path, {**GOOD, "source": "local-storage/card"}))
    assert "source: storage 'local-storage/card'" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "mapping"), ("- a\n- b", "mapping"), ("just words", "mapping"), ("7", "mapping"), ("{", "YAML"),
        ("name: [", "YAML"), ("a: b: c", "YAML"), ("name: 2024-99-99", "YAML"), ("\x00", "YAML"),
        ("!!python/object:os.system x", "YAML"), ("? [a]\n: b", ""), ("a: &a [*a]", ""), ("{}", "name"),
        ("name: &x\n  y: *x\n", ""),
    ],
)  # fmt: skip
def test_a_file_that_is_no_job(tmp_path: Path, text: str, word: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert word in str(caught.value)
    assert caught.value.path == str(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin1").write_bytes(b"name: \xe4")
    for name, word in (("none.yaml", "No such file"), (".", "directory"), ("latin1", "YAML"), ("x" * 300, "long")):
        with pytest.raises(ConfigError, match=word):
            load_job(tmp_path / name)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, {**GOOD, "verify": "no", "min_age": "soon", "extra": 1})
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert all(key in str(caught.value) for key in ("verify", "min_age", "extra"))


# -- durations and sizes -----------------------------------------------------------------------------------------------------

DURATION = TypeAdapter(Duration)


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30s", 30), ("30 s", 30), ("10 min", 600), ("10min", 600), ("10m", 600), ("1h 30min", 5400), ("1h30m", 5400),
        ("7d", 604_800), ("7 d", 604_800), ("2 w", 1_209_600), ("250ms", 0.25), ("1.5 h", 5400), ("0s", 0), (45, 45),
        (0.5, 0.5), ("PT1M", 60), ("P1D", 86_400), (" 5 s ", 5), ("1d 1h 1min 1s", 90_061),
    ],
)  # fmt: skip
def test_durations(written: object, seconds: float) -> None:
    assert DURATION.validate_python(written).total_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize(
    "written", ["", "s", "soon", "5 parsecs", "-5 s", -1, "5 s ago", "1e9d", "9" * 30 + "w", "9" * 400 + "s", None, [], float("nan"), float("inf")]
)  # fmt: skip
def test_bad_durations(written: object) -> None:
    with pytest.raises(ValidationError):
        DURATION.validate_python(written)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_durations_come_back(value: timedelta) -> None:
    assert DURATION.validate_python(DURATION.dump_python(value, mode="json")) == value
    whole = timedelta(days=value.days, seconds=value.seconds)
    assert DURATION.validate_python(f"{value.days}d {value.seconds} s") == whole


@pytest.mark.parametrize(
    ("written", "size"),
    [("0", 0), ("1", 1), (7, 7), ("1 KiB", 1024), ("1kb", 1000), ("1.5 MiB", 1_572_864), ("3GB", 3_000_000_000), ("2 TiB", 2 << 40)],
)  # fmt: skip
def test_sizes(written: object, size: int) -> None:
    assert job(min_size=written).min_size == size


# -- patterns -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "takes", "leaves"),
    [
        ("*.mp4", ["a.mp4", "d/e/a.mp4", ".mp4", "x\ny.mp4"], ["a.mp4x", "a.MP4", "a.mp4/b"]),
        ("DCIM/*.mp4", ["DCIM/a.mp4"], ["DCIM/x/a.mp4", "a.mp4", "x/DCIM/a.mp4"]),
        ("DCIM/**", ["DCIM/a", "DCIM/b/c"], ["DCIM", "xDCIM/a", "x/DCIM/a"]),
        ("DCIM/", ["DCIM/a", "DCIM/b/c"], ["DCIM", "a"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax", "x/a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb", "xa/b"]),
        ("a**/b", ["a/b", "ax/b"], ["ab", "b"]),
        ("**", ["a", "a/b"], []),
        ("a?c", ["abc", "x/abc", "aüc"], ["ac", "abbc", "a/c"]),
        ("[ab].txt", ["a.txt", "b.txt"], ["c.txt", "ab.txt"]),
        ("[!ab].txt", ["c.txt"], ["a.txt"]),
        ("x/a[!b]c", ["x/adc"], ["x/abc", "x/a/c"]),
        ("x/a[+-9]c", ["x/a1c", "x/a.c"], ["x/a/c"]),
        ("[]a]x", ["]x", "ax"], ["bx"]), ("[!]a]x", ["bx"], ["]x", "ax"]),
        ("[a-c]", ["b"], ["d", "-"]),
        ("[-a]", ["-", "a"], ["b"]),
        ("a[", ["a["], ["a"]), ("[]", ["[]"], ["a"]),
        ("(x).+$", ["(x).+$"], ["x.."]),
        ("a\\b", ["a\\b"], ["ab"]),
        ("[\\d]", ["\\", "d"], ["1"]), ("[a&&b]", ["&"], ["c"]),
        ("{a,b}", ["{a,b}"], ["a"]),
        ("re:.*\\.(mp4|wav)", ["a.mp4", "d/b.wav"], ["a.mp4.x"]),
        ("re:a", ["a"], ["ab", "ba", "d/a"]),
    ],
)  # fmt: skip
def test_patterns(pattern: str, takes: list[str], leaves: list[str]) -> None:
    compiled = compile_pattern(pattern)
    assert [p for p in takes if not compiled.fullmatch(p)] == []
    assert [p for p in leaves if compiled.fullmatch(p)] == []


NAME = st.text(st.sampled_from("abc.-]![^\\*?\n"), min_size=1, max_size=6)
GLOB = st.lists(st.sampled_from(["a", "b", ".", "*", "?", "[ab]", "[!a]", "[a-b]", "-", "\\", "^", "]", "!"]), min_size=1, max_size=5)  # fmt: skip


@given(GLOB.map("".join).filter(lambda g: "**" not in g), NAME)
@example("[!]a]", "b")
@example("[!]a]", "]")
def test_a_glob_on_a_name_is_what_fnmatch_says(glob: str, name: str) -> None:
    expected = fnmatch.fnmatchcase(name, glob)
    assert bool(compile_pattern(glob).fullmatch(name)) == expected
    assert bool(compile_pattern(glob).fullmatch(f"deep/er/{name}")) == expected


@given(
    st.lists(GLOB.map("".join).filter(lambda g: "**" not in g and g != "."), min_size=2, max_size=3),
    st.lists(NAME.filter(lambda n: n not in (".", "..") and "\\" not in n), min_size=2, max_size=4),
)
def test_a_glob_on_a_path_is_what_pathlib_says(globs: list[str], parts: list[str]) -> None:
    expected = len(globs) == len(parts) and PurePosixPath("/".join(parts)).match("/".join(globs))
    assert bool(compile_pattern("/".join(globs)).fullmatch("/".join(parts))) == expected


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of re, at [a--b]
@given(st.text(max_size=15))
@example("[[a]")
@example("[a--b]")
@example("[")
def test_any_pattern_compiles_or_is_a_value_error(pattern: str) -> None:
    try:
        compile_pattern(pattern).fullmatch("some/file")
    except ValueError as error:
        assert type(error) is ValueError


# -- where a file goes --------------------------------------------------------------------------------------------------------------


def target(template: str, **more: Any) -> Target:
    return Target(job(path=template, device="cam-1", **more), flight="flight-7")


@pytest.mark.parametrize(
    ("template", "path", "goes"),
    [
        ("{path}", "DCIM/a.mp4", "DCIM/a.mp4"), ("{flight}/{path}", "DCIM/a.mp4", "flight-7/DCIM/a.mp4"),
        ("{device}/{job}/{name}", "DCIM/a.mp4", "cam-1/cards/a.mp4"), ("{folder}/{name}", "a.mp4", "a.mp4"),
        ("{folder}/{stem}-x.{ext}", "d/e/a.b.mp4", "d/e/a.b-x.mp4"), ("x/{folder}/{name}", "a.mp4", "x/a.mp4"),
        ("{year}/{month}/{day}/{name}", "a", "2023/11/14/a"), ("{date}T{time}/{hour}/{name}", "a", "2023-11-14T221320/22/a"),
        ("{stem}", ".hidden", ".hidden"), ("{{{name}}}", "a", "{a}"), ("{ext}/{name}", "d/README", "README"),
        ("{ext}/{name}", "README", "README"), ("{folder}/{ext}/{name}", "d/README", "d/README"),
    ],
)  # fmt: skip
def test_templates(template: str, path: str, goes: str) -> None:
    assert target(template).path_of(FileInfo(path, 1, 1_700_000_000 * 10**9)) == goes


def test_dates_are_those_of_the_jobs_time_zone() -> None:
    info = FileInfo("a", 1, 1_704_063_600 * 10**9)  # 2023-12-31 23:00 UTC
    assert target("{date}/{name}").path_of(info) == "2023-12-31/a"
    schedule = {"cron": "0 0 * * *", "timezone": "Europe/Berlin"}
    assert target("{date}/{name}", schedule=schedule).path_of(info) == "2024-01-01/a"


@pytest.mark.parametrize("mtime", [0, -1, -(10**18), 2**63, 10**19, 2**70, -(2**70), 10**30, -(10**30)])
def test_any_mtime_a_disk_can_hold(mtime: int) -> None:
    """tmpfs and btrfs hold years no calendar knows: then the file is refused, not the run."""
    try:
        path = target("{date}/{name}").path_of(FileInfo("a", 1, mtime))
    except ConfigError as error:
        assert "a" in str(error)
        assert abs(mtime) > 10**19
    else:
        assert path.endswith("/a")
        assert len(path) == len("2023-11-14/a")
    assert target("{name}").path_of(FileInfo("a", 1, mtime)) == "a"


@pytest.mark.parametrize(
    ("template", "folder", "manifest"),
    [
        ("{path}", "", "checksums.sha256"), ("{flight}/{path}", "flight-7", "flight-7/checksums.sha256"),
        ("in/{flight}/{device}/{date}/{name}", "in/flight-7/cam-1", "in/flight-7/cam-1/checksums.sha256"),
        ("{date}/{flight}/{name}", "", "checksums.sha256"), ("{flight}-{name}", "", "checksums.sha256"),
    ],
)  # fmt: skip
def test_where_the_manifest_lies(template: str, folder: str, manifest: str) -> None:
    found = target(template)
    assert (found.folder, found.manifest) == (folder, manifest)
    assert target(template, manifest=None).manifest is None


def test_a_flight_that_is_needed_and_not_given() -> None:
    for token in ("flight", "device"):
        with pytest.raises(ConfigError, match=f"--{token}"):
            Target(job(path=f"{{{token}}}/{{name}}"))
    for bad in ("..", "a/b", "", "-x", "a\n"):
        with pytest.raises(ConfigError):
            Target(job(path="{flight}/{name}"), flight=bad)


TEMPLATE = st.lists(
    st.sampled_from([*(f"{{{t}}}" for t in sorted(TOKENS)), "/", "/", ".", "..", "-", "x", "{{", "}}", "ü"]), max_size=7
).map("".join)


@given(TEMPLATE | st.sampled_from(["{stem}/{name}", "{ext}/{stem}", "{folder}{name}", "{name}.{ext}"]), PATH | ANYTHING)
@example("{stem}/{name}", "...mp4")
@example("{ext}/{name}", "x...")
@example("{folder}/{name}", "../../etc/passwd")
@example("x/{path}", "/etc/passwd")
@example("{folder}/{name}", "/../x")
def test_no_file_leaves_the_destination(template: str, path: str) -> None:
    try:
        made = job(path=template, device="cam-1")
    except ValidationError:
        return
    filled = Target(made, flight="flight-7")
    assert not filled.folder or names.check_path(filled.folder)
    try:
        found = filled.path_of(FileInfo(path, 1, 1_700_000_000 * 10**9))
    except OnblockError as error:
        assert isinstance(error, ConfigError)
        return
    assert names.check_path(found) == found
    assert os.path.normpath(os.path.join("/srv/data", found)) == f"/srv/data/{found}"
    assert not filled.folder or found.startswith(f"{filled.folder}/")


@pytest.mark.parametrize("path", HOSTILE + BYTES, ids=ascii)
def test_hostile_names_keep_their_bytes(path: str) -> None:
    assert target("{path}").path_of(FileInfo(path, 1, 2)) == path
    assert target("{flight}/{folder}/{name}").path_of(FileInfo(f"d/{path}", 1, 2)) == f"flight-7/d/{path}"
