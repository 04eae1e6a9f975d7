"""The gate: its rules as tables, what may be overridden, and whole runs with files that it stops."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import insert

from blocks.errors import Cancelled, ConfigError, Kind
from blocks.storage import LocalStorage
from blocks.storage.base import Features, FileInfo
from blocks.storage.pool import SessionPool
from deployments.overrides import moment
from flows.ledger import Ledger, State
from flows.ledger.models import Override as Entry
from flows.ledger.overrides import Override, Revocation
from flows.ledger.store import now_ms
from flows.ledger.wishes import Priority
from flows.transfer import rules
from flows.transfer.gate import Beside, Gate, override, still_passes
from flows.transfer.gate_settings import GateSettings
from flows.transfer.job import Target, TransferJob
from flows.transfer.rules import Finding, Tier
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, here, shipments
from tests.contract.data import BYTES, HOSTILE
from tests.faults.breaking import BreakingStorage
from tests.test_names import ANYTHING
from tests.transfer.conftest import Bench, Cli, summary_of

# -- rules ------------------------------------------------------------------------------------------------------------

CAMERA_NAMES = [
    "DJI_0001.MP4", "GX010023.MP4", "GOPR0001.JPG", "IMG_1234.JPG", "20240101_120000.wav", "DSC_0001.NEF", "P1010001.RW2",
    "MVI_0042.MOV", "_MG_1234.CR2", "VID_20240101_120000_00_001.insv", "R0010012.DNG", "100MEDIA/DJI_0001.SRT",
    "DJI_20240101120000_0001_T.JPG", "C0001M01.XML", "A001_C002_0101AB.mxf", "flight-0042.bag", "2024-01-01 12.00.00.jpg",
    "scan (2).csv", "Thumbs.db", "XX_0001.MP4", "maxxx.mp4", "todo.txt", "AXXX1.jpg", "100%.txt", "caf%C3%A9.txt",
    "%d0%b0.txt", "$RECYCLE.BIN/$I30", "{3F2504E0-4F89-11D3-9A0C-0305E82C3301}.dat", "a{b,c}.txt", "comet.csv", "console.log",
    "NULL.bin",
]  # fmt: skip
NAME_RULES = (rules.placeholder, rules.template, rules.reserved)


@pytest.mark.parametrize("name", CAMERA_NAMES)
def test_names_of_cameras_pass(name: str) -> None:
    assert [rule(f"DCIM/100GOPRO/{name}") for rule in NAME_RULES] == [None] * 3


CAMERA = st.from_regex(
    re.compile(
        r"(DJI_|GX|GOPR|IMG_|DSC_|MVI_|VID_|P|R|_MG_|LRV_|MAP-)[0-9]{4,8}(_[0-9]{6})?(~[2-9])?\.(MP4|JPG|mov|wav|SRT|NEF)"
    ),
    fullmatch=True,
)


@given(st.lists(st.from_regex(r"[0-9]{3}[A-Z]{5}|DCIM|[0-9]{4}-[0-9]{2}-[0-9]{2}", fullmatch=True), max_size=3), CAMERA)
def test_what_looks_as_from_a_camera_passes(folders: list[str], name: str) -> None:
    path = "/".join([*folders, name])
    assert [rule(path) for rule in NAME_RULES] == [None] * 3


@given(ANYTHING)
def test_no_rule_ever_raises(path: str) -> None:
    texts = [rule(path) for rule in NAME_RULES]
    long = rules.too_long(path, 3, 5)
    texts += [long and long[1], rules.prefix(path, ["MAP_"]), rules.own(path, r"^\w+$", None, "")]
    texts += [rules.own(path, None, r"\W", ""), rules.sidecar(path, ["{stem}.json", "{name}.md5"], [])]
    for text in texts:
        assert text is None or text.isprintable(), "what a rule says can be printed"
    found = [Finding("x", Tier.HARD, t) for t in texts if t]
    assert rules.from_json(rules.as_json(found)) == found


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("{flight}/a.mp4", "{flight}"), ("a/{}.mp4", "{}"), ("{0}_{1}.csv", "{0}"), ("{flight_id} x.mp4", "{flight_id}"),
        ("a/<name>.txt", "<name>"), ("%(flight)s.mp4", "%(flight)s"), ("%Y%m%d.wav", "%Y%m"), ("%Y-%m-%d.wav", "%Y-%m"),
        ("TODO.mp4", "TODO"), ("TODO/a.mp4", "TODO"), ("FIXME_1.csv", "FIXME"), ("site-TBD-1.jpg", "TBD"), ("XXX_0001.mp4", "XXX"),
        ("a_XXXXX.mp4", "XXXXX"), ("YYYYMMDD_HHMMSS.wav", "YYYYMMDD"), ("YYYY-MM-DD.csv", "YYYY-MM-DD"),
        ("ä-CHANGEME", "CHANGEME"), ("{größe}.txt", "{größe}"),
    ],
)  # fmt: skip
def test_placeholders(path: str, shown: str) -> None:
    assert rules.placeholder(path) == f"the placeholder {shown!r} was never filled in"


@pytest.mark.parametrize(
    ("path", "token"),
    [
        ("{{ flight }}.mp4", "{{"), ("{{flight}}.mp4", "{{"), ("{% if x %}", "{%"), ("${flight}/a", "${"), ("<%= x %>", "<%"),
        ("a}}", "}}"), ("100%}.x", "%}"),
    ],
)  # fmt: skip
def test_templates(path: str, token: str) -> None:
    assert rules.template(path) == f"{token!r} is left over from a template"


def test_a_template_is_no_placeholder() -> None:
    for path in ("{{flight}}.mp4", "${flight}.mp4", "{{ flight }}"):
        assert rules.placeholder(path) is None


@pytest.mark.parametrize(
    "path",
    ["CON", "a/NUL.txt", "aux.tar.gz", "dot.", "space ", "a./b", "a<b", "a>b", "a:b", 'a"b', "a|b", "a?b", "a*b", "a\\b", "a\tb"],
)  # fmt: skip
def test_names_that_windows_does_not_take(path: str) -> None:
    assert rules.reserved(path)


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a" * 10, None), ("a" * 11, Tier.SOFT), ("ü" * 10, None), ("ü" * 11, Tier.HARD), ("🎥" * 5, None), ("🎥" * 6, Tier.HARD),
        ("\udcff" * 11, Tier.SOFT),
    ],
)  # fmt: skip
def test_lengths_are_characters_and_bytes(path: str, found: Tier | None) -> None:
    said = rules.too_long(path, 10, 21)
    assert (said and said[0]) == found
    assert rules.too_long(path, None, None) is None


@pytest.mark.parametrize(
    ("path", "passes"), [("MAP_1.jpg", True), ("a/CAL_1.jpg", True), ("MAP_/1.jpg", False), ("map_1.jpg", False)]
)
def test_prefixes_are_of_the_name(path: str, passes: bool) -> None:
    assert (rules.prefix(path, ["MAP_", "CAL_"]) is None) == passes


@pytest.mark.parametrize(
    ("must", "must_not", "path", "says"),
    [
        (r"_\d{4}\.", None, "a_0001.mp4", None), (r"_\d{4}\.", None, "a.mp4", r"its path does not match _\d{4}\."),
        (None, "test", "a/b.mp4", None), (None, "(?i)test", "a/Test.mp4", "its path holds 'Test'"),
    ],
)  # fmt: skip
def test_rules_of_the_job_s_own(must: str | None, must_not: str | None, path: str, says: str | None) -> None:
    assert rules.own(path, must, must_not, "") == says
    assert rules.own(path, must, must_not, "no tests") == (says and "no tests")


@pytest.mark.parametrize(
    ("path", "needs", "there", "says"),
    [
        ("a/b.mp4", ["{stem}.json"], ["a/b.json"], None), ("a/b.mp4", ["{stem}.json"], ["b.json"], "there is no b.json beside it"),
        ("b.mp4", ["{name}.md5", "DONE"], ["DONE"], None),
        ("b.mp4", ["{name}.md5", "DONE"], [], "there is no b.mp4.md5 or DONE beside it"),
        (".b", ["{stem}.json"], [".b.json"], None), ("{name}.mp4", ["{stem}.json"], ["{name}.json"], None),
    ],
)  # fmt: skip
def test_sidecars(path: str, needs: list[str], there: list[str], says: str | None) -> None:
    assert rules.sidecar(path, needs, there) == says


def test_folders_that_are_too_large_to_hold_are_asked_by_name(bench: Bench) -> None:
    for n in range(9):
        bench.put(f"large/f{n}")
        bench.put(f"small{n}/f")
    with bench.job().source.open() as session:
        few, many = Beside(most=4), Beside()
        for _ in range(2):
            for wanted in (["large/f1", "large/f8", "large/g"], *([f"small{n}/f", f"small{n}/g"] for n in range(9))):
                assert few.there(session, wanted) == many.there(session, wanted) == wanted[:-1]
            assert sum(len(k or ()) for k in few._known.values()) <= 4 + 1


# -- what the form refuses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"placeholder": "severe"}, "'hard' or 'soft'"), ({"reserved": True}, "'hard' or 'soft'"), ({"nonsense": 1}, "Extra inputs"),
        ({"length_hard": 0}, "greater than or equal to 1"), ({"prefix": {"any_of": []}}, "at least 1"),
        ({"prefix": {"any_of": ["a/"]}}, "no beginning of a file name"), ({"prefix": {"any_of": [""]}}, "no beginning"),
        ({"prefix": {"any_of": ["A"], "files": ["re:("]}}, "bad regular expression"),
        ({"sidecars": [{"files": [], "needs": ["x"]}]}, "at least 1"),
        ({"sidecars": [{"files": ["*"], "needs": ["../x"]}]}, "no name of a file beside another"),
        ({"sidecars": [{"files": ["*"], "needs": ["{flight}.json"]}]}, "no name of a file beside another"),
        ({"sidecars": [{"files": ["*"], "needs": [".."]}]}, "could leave its folder"),
        ({"own": [{"name": "x", "must": "("}]}, "bad regular expression"), ({"own": [{"name": "x"}]}, "needs `must` or `must_not`"),
        ({"own": [{"name": "x", "must": "a", "must_not": "b"}]}, "not both"), ({"own": [{"name": "a b", "must": "a"}]}, "may hold only"),
        ({"own": [{"name": "reserved", "must": "a"}]}, "is the name of a rule"), ({"own": [{"name": "unsafe", "must": "a"}]}, "is the name"),
        ({"own": [{"name": "x", "must": "a"}, {"name": "x", "must": "b"}]}, "two rules 'x'"),
        ({"own": [{"name": "x", "must": "a", "message": "a\nb"}]}, "one line"),
        ({"own": [{"name": "x", "must": "a", "tier": "medium"}]}, "'hard' or 'soft'"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(bench: Bench, onblock: Cli, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(says)):
        GateSettings.model_validate(settings)


def test_a_bad_gate_is_refused_with_the_key(bench: Bench, onblock: Cli) -> None:
    bench.put("a")
    done = onblock("run", bench.yaml(gate={"own": [{"name": "digits", "must": "("}]}))
    assert (done.returncode, done.stdout) == (2, "")
    assert "gate.own.0.must: bad regular expression '('" in done.stderr and done.stderr.count("\n") == 1
    assert bench.files() == {}


# -- once more, before something is deleted ---------------------------------------------------------------------------

NOW = 1_800_000_000_000
FILE = FileInfo("DCIM/{flight}.mp4", 1, 1)


def made(**changes: Any) -> Override:
    return Override(1, "job", "placeholder", "*.mp4", "ada", "why", NOW - 10)._replace(**changes)


@pytest.mark.parametrize(
    ("settings", "overrides", "passes"),
    [
        ({}, [], True), ({"placeholder": "soft"}, [], True), ({"placeholder": "hard"}, [], False),
        ({"placeholder": "soft", "soft_blocks": True}, [], False), ({"placeholder": "hard"}, [made()], True),
        ({"placeholder": "hard"}, [made(path="{flight}.mp4")], True), ({"placeholder": "hard"}, [made(path="*.jpg")], False),
        ({"placeholder": "hard"}, [made(path="DCIM/")], False), ({"placeholder": "hard"}, [made(rule="template")], False),
        ({"placeholder": "hard"}, [made(expires_at=NOW)], False), ({"placeholder": "hard"}, [made(expires_at=NOW + 1)], True),
        ({"placeholder": "hard"}, [made(revoked=Revocation(2, "bob", "no", NOW))], False),
        ({"placeholder": "hard"}, [made(revoked=Revocation(2, "bob", "no", NOW)), made(id=3)], True),
        ({"placeholder": "hard", "prefix": {"any_of": ["MAP_"]}}, [made()], False),
        ({"placeholder": "hard", "prefix": {"any_of": ["MAP_"], "files": ["*.jpg"]}}, [made()], True),
    ],
)  # fmt: skip
def test_still_passes(bench: Bench, settings: dict[str, Any], overrides: list[Override], passes: bool) -> None:
    job = bench.job(gate=settings, folder="DCIM")  # patterns begin below it
    assert still_passes(FILE, "{flight}.mp4", job, overrides, NOW) == passes


def test_a_sidecar_counts_as_it_was_found(bench: Bench) -> None:
    job = bench.job(gate={"sidecars": [{"files": ["*.mp4"], "needs": ["{stem}.json"]}]})
    noted = rules.as_json([Finding("sidecar", Tier.HARD, "there is none", 1)])
    assert still_passes(FILE, "a.mp4", job, [], NOW), "it was there, and may have been deleted first"
    assert still_passes(FILE, "a.mp4", job, [made(rule="sidecar")], NOW, noted)
    assert not still_passes(FILE, "a.mp4", job, [], NOW, noted)
    assert still_passes(FILE, "a.mp4", bench.job(), [], NOW, noted), "the job no longer asks for it"


def test_a_name_that_is_unsafe_never_passes(bench: Bench) -> None:
    assert not still_passes(FILE, "../x", bench.job(), [made(rule="unsafe", path="**")], NOW)


# -- whole runs -------------------------------------------------------------------------------------------------------


def row_of(path: str) -> dict[str, Any]:
    with Ledger.open() as ledger:
        return next(r for r in ledger.files() if r["path"] == path)


def state_of(path: str) -> State:
    return State(row_of(path)["state"])


def found(path: str) -> list[Finding]:
    return rules.from_json(row_of(path)["findings"])


def allow(job: TransferJob | str, rule: str, pattern: str, **given: Any) -> Override:
    with Ledger.open() as ledger:
        return override(ledger, job, rule, pattern, who="ada", why="it is fine", **given)


def test_a_job_that_says_nothing_takes_what_it_took(bench: Bench) -> None:
    hostile = [n for n in HOSTILE + BYTES if not n.endswith((".part", ".partial"))]
    for name in hostile:
        bench.put(f"x{len(name)}{hostile.index(name)}/{name}")
    bench.put("{flight}/TODO/${x}/{{ y }}.mp4")
    summary = bench.run()
    assert (summary["blocked"], summary["failed"]) == (0, 0)
    assert summary["delivered"] == len(hostile) + 1
    assert found("{flight}/TODO/${x}/{{ y }}.mp4") == []


def test_blocked_overridden_delivered(bench: Bench, onblock: Cli) -> None:
    bench.put("DCIM/{flight}_1.mp4")
    bench.put("DCIM/{flight}_2.jpg")
    bench.put("a.mp4")
    job = bench.yaml(gate={"placeholder": "hard"})
    done = onblock("run", job, "--json")
    assert (done.returncode, summary_of(done)["delivered"], summary_of(done)["blocked"]) == (1, 1, 2)
    row = row_of("DCIM/{flight}_1.mp4")
    assert (row["state"], row["kind"], row["stage"], row["dest_path"]) == (State.BLOCKED, Kind.CONFIG, "gate", None)
    assert "onblock overrides add job placeholder PATTERN --why" in row["message"] and "'{flight}'" in row["message"]
    (finding,) = found("DCIM/{flight}_1.mp4")
    assert (finding.rule, finding.tier, finding.override) == ("placeholder", Tier.HARD, None)
    assert onblock("run", job).returncode == 1, "and it stays so"

    done = onblock("overrides", "add", "job", "placeholder", "DCIM/*.mp4", "--why", "named by hand", "--expires", "7d")
    assert (done.returncode, "override 1: files of job that match DCIM/*.mp4 pass placeholder" in done.stdout) == (
        0,
        True,
    )
    done = onblock("run", job, "--json")
    assert (summary_of(done)["delivered"], summary_of(done)["blocked"]) == (1, 1)
    assert bench.files().keys() == {"DCIM/{flight}_1.mp4", "a.mp4"}
    row = row_of("DCIM/{flight}_1.mp4")
    assert (row["state"], row["kind"], row["message"]) == (State.VERIFIED, None, None)
    assert [f.override for f in found("DCIM/{flight}_1.mp4")] == [1], "on whose authority is kept"
    listed = json.loads(onblock("transfers", "list", "--json").stdout)["files"]
    assert {f["path"]: [x["rule"] for x in f["findings"]] for f in listed} == {
        "DCIM/{flight}_1.mp4": ["placeholder"], "DCIM/{flight}_2.jpg": ["placeholder"], "a.mp4": [],
    }  # fmt: skip
    assert "(override 1)" in onblock("transfers", "list", COLUMNS="200").stdout


def test_an_override_that_has_expired_helps_nobody(bench: Bench) -> None:
    bench.put("CON.mp4")
    with Ledger.open() as ledger, ledger.engine.begin() as c:
        c.execute(insert(Entry).values(
            job="job", rule="reserved", path="**", who="ada", why="once", made_at=now_ms() - 2000, expires_at=now_ms() - 1000
        ))  # fmt: skip
    assert bench.run(gate={"reserved": "hard"})["blocked"] == 1
    assert (state_of("CON.mp4"), bench.files()) == (State.BLOCKED, {})


def test_an_override_that_expires_under_way_helps_nobody_any_more(bench: Bench) -> None:
    job = bench.job(gate={"reserved": "hard"})
    held = Override(1, "job", "reserved", "**", "ada", "once", 0, expires_at=now_ms() + 3_600_000)
    file = FileInfo("CON.mp4", 1, 1)
    for granted, state in ((held, State.QUEUED), (held._replace(expires_at=now_ms() - 1), State.BLOCKED)):
        (passage,) = Gate(job, Target(job, None, None), [granted], SessionPool()).judge([file], Features())
        assert passage.state is state


def test_a_file_in_the_queue_is_stopped_when_its_override_is_revoked(bench: Bench) -> None:
    bench.put("CON.mp4")
    job = bench.job(gate={"reserved": "hard"})
    granted = allow(job, "reserved", "**")
    with Ledger.open() as ledger:
        with TransferRun(job, ledger) as run:
            assert len(list(shipments(run))) == 1  # entered, and not moved
        assert (state_of("CON.mp4"), found("CON.mp4")[0].override) == (State.QUEUED, granted.id)
        ledger.revoke(granted.id, who="bob", why="it is not")
    summary = bench.run(gate={"reserved": "hard"})
    assert (summary["blocked"], summary["delivered"], bench.files()) == (1, 0, {})
    assert (state_of("CON.mp4"), found("CON.mp4")[0].override) == (State.BLOCKED, None)
    assert "'CON.mp4' is a reserved name" in row_of("CON.mp4")["message"]


def run_and_revoke(bench: Bench, at: int, **settings: Any) -> dict[str, Any]:
    """A run, in the middle of which its override is taken back; it asks for overrides as it does once a second."""
    to = BreakingStorage.at(bench.archive)
    job = bench.job(gate={"reserved": "hard"}, destinations=[to], **settings)
    granted = allow(job, "reserved", "**")
    with Ledger.open() as ledger, TransferRun(job, ledger) as run:

        def revoke() -> None:
            ledger.revoke(granted.id, who="bob", why="it is not")
            run.ask()

        to.cable.at = {at: revoke}
        return carry_out(run, here(run))


def test_what_is_not_delivered_yet_is_stopped_when_an_override_is_revoked(bench: Bench) -> None:
    names = {f"CON.{n}.mp4" for n in range(8)}
    for name in names:
        bench.put(name, b"ten bytes.")
    summary = run_and_revoke(bench, 25, shipping={"max_files": 2, "at_once": 1})
    delivered = set(bench.files())
    assert (summary["delivered"], summary["blocked"], summary["failed"], len(delivered)) == (2, 6, 0, 2)
    for name in names - delivered:
        assert (state_of(name), found(name)[0].override) == (State.BLOCKED, None)
        assert "is a reserved name" in row_of(name)["message"]
    assert {state_of(name) for name in delivered} == {State.VERIFIED}, "what was delivered before stays"


def test_a_large_file_is_stopped_in_its_middle_when_an_override_is_revoked(bench: Bench) -> None:
    bench.put("CON.mp4", bytes(60 << 20))
    summary = run_and_revoke(bench, 35 << 20)
    assert (summary["delivered"], summary["blocked"], bench.files()) == (0, 1, {})
    assert (state_of("CON.mp4"), found("CON.mp4")[0].override) == (State.BLOCKED, None)
    allow("job", "reserved", "**")
    assert bench.run(gate={"reserved": "hard"})["delivered"] == 1


def test_what_was_kept_of_a_file_goes_when_a_rule_stops_it(bench: Bench) -> None:
    bench.put("CON.mp4", bytes(60 << 20))
    to = BreakingStorage.at(bench.archive)
    with Ledger.open() as ledger, TransferRun(bench.job(destinations=[to]), ledger) as run:
        to.cable.at = {35 << 20: run.stop.set}
        with pytest.raises(Cancelled):
            carry_out(run, here(run))
    assert len(bench.files()) == 1, "kept for a resume"
    summary = bench.run(destinations=[to], gate={"reserved": "hard"})
    assert (summary["blocked"], bench.files()) == (1, {})
    assert bench.run(destinations=[to])["delivered"] == 1


def test_a_file_in_the_queue_is_stopped_by_a_rule_that_is_new(bench: Bench) -> None:
    bench.put("TODO.mp4")
    bench.put("a.mp4")
    with Ledger.open() as ledger, TransferRun(bench.job(), ledger) as run:
        assert len(list(shipments(run))) == 1
    summary = bench.run(gate={"placeholder": "hard"})
    assert (summary["blocked"], summary["delivered"]) == (1, 1)
    assert state_of("TODO.mp4") is State.BLOCKED
    assert bench.run()["delivered"] == 1, "and goes on when the rule is gone"
    assert (state_of("TODO.mp4"), found("TODO.mp4")) == (State.VERIFIED, [])


def test_every_finding_that_blocks_needs_an_override(bench: Bench) -> None:
    bench.put("TODO|1.mp4")
    gate = {"placeholder": "hard", "reserved": "hard", "length_soft": 3}
    bench.run(gate=gate)
    assert {f.rule: f.tier for f in found("TODO|1.mp4")} == {
        "placeholder": "hard",
        "reserved": "hard",
        "length": "soft",
    }
    allow("job", "placeholder", "TODO*")
    assert bench.run(gate=gate)["blocked"] == 1
    assert "placeholder:" not in row_of("TODO|1.mp4")["message"], "the row says what is still in the way"
    allow("job", "reserved", "TODO*")
    assert bench.run(gate=gate)["delivered"] == 1
    assert {f.rule: f.override for f in found("TODO|1.mp4")} == {"placeholder": 1, "reserved": 2, "length": None}


@pytest.mark.parametrize("soft_blocks", [False, True])
def test_soft_findings(bench: Bench, soft_blocks: bool) -> None:
    bench.put("TODO.mp4")
    summary = bench.run(gate={"placeholder": "soft", "soft_blocks": soft_blocks})
    assert (summary["delivered"], summary["blocked"]) == ((0, 1) if soft_blocks else (1, 0))
    assert [(f.rule, f.tier) for f in found("TODO.mp4")] == [("placeholder", Tier.SOFT)]


def test_a_sidecar_that_comes_later(bench: Bench) -> None:
    bench.put("a/clip.mp4")
    bench.put("b/clip.mp4")
    bench.put("b/clip.json")
    gate = {"sidecars": [{"files": ["*.mp4"], "needs": ["{stem}.json", "{stem}.xml"]}]}
    summary = bench.run(gate=gate)
    assert (summary["delivered"], summary["blocked"]) == (2, 1)
    assert "there is no clip.json or clip.xml beside it" in row_of("a/clip.mp4")["message"]
    bench.put("a/clip.xml")
    assert bench.run(gate=gate)["delivered"] == 2
    assert state_of("a/clip.mp4") is State.VERIFIED and found("a/clip.mp4") == []


def test_a_file_that_is_gone_is_not_blamed_for_its_sidecar(bench: Bench) -> None:
    """What is urgent is planned before the listing, and may be gone, with its folder."""
    gate = {"sidecars": [{"files": ["*.mp4"], "needs": ["{stem}.json"]}]}
    for path in ("a/clip.mp4", "b/clip.mp4", "b/other.mp4"):
        bench.put(path)
    with Ledger.open() as ledger:
        with TransferRun(bench.job(), ledger) as run:
            assert len(list(shipments(run))) == 1
        ledger.prioritise(ledger.choose(job="job"), Priority.URGENT)
    shutil.rmtree(bench.card / "a")
    (bench.card / "b/clip.mp4").unlink()
    summary = bench.run(gate=gate)
    assert (summary["failed"], summary["blocked"]) == (2, 1)
    assert [row_of(p)["kind"] for p in ("a/clip.mp4", "b/clip.mp4")] == [Kind.SOURCE_VANISHED] * 2
    assert state_of("b/other.mp4") is State.BLOCKED


def test_rules_judge_the_name_at_the_destination(bench: Bench) -> None:
    bench.put("DCIM/TODO_1.mp4")
    bench.put("DCIM/2.mp4")
    gate = {
        "placeholder": "hard",
        "own": [{"name": "two-digits", "must": r"^\d\d_", "message": "begin with two digits", "files": ["*_1.mp4"]}],
    }
    assert bench.run(gate=gate, path="20_{ext}/{name}")["blocked"] == 1
    assert [f.rule for f in found("DCIM/TODO_1.mp4")] == ["placeholder"]
    assert bench.run(gate=gate, path="x/{stem}.{ext}", name="other")["blocked"] == 1
    allow("job", "placeholder", "TODO_1.mp4")
    assert bench.run(gate=gate, path="20_{ext}/{name}")["delivered"] == 1
    assert "20_mp4/TODO_1.mp4" in bench.files()


def test_one_destination_takes_what_the_other_does_not(bench: Bench, tmp_path: Any) -> None:
    """Findings are of a file and a destination; both rows tell."""
    bench.put("CON")
    (tmp_path / "second").mkdir()
    both = [LocalStorage(root=str(bench.archive)), LocalStorage(root=str(tmp_path / "second"))]
    assert bench.run(destinations=both, gate={"reserved": "hard"})["blocked"] == 2
    allow("job", "reserved", "CON")
    assert bench.run(destinations=both, gate={"reserved": "hard"})["delivered"] == 2


def test_a_plan_shows_what_was_found(bench: Bench, onblock: Cli) -> None:
    bench.put("TODO.mp4")
    bench.put("CON.mp4")
    job = bench.yaml(gate={"placeholder": "hard", "reserved": "soft"})
    plan = json.loads(onblock("plan", job, "--json").stdout)
    assert (plan["to_deliver"], plan["blocked"]) == (1, 1)
    assert {f["path"]: (f["blocked"], [x["rule"] for x in f["findings"]]) for f in plan["findings"]} == {
        "TODO.mp4": (True, ["placeholder"]), "CON.mp4": (False, ["reserved"]),
    }  # fmt: skip
    shown = onblock("plan", job, COLUMNS="200").stdout
    assert "found at the gate" in shown and "'TODO' was never filled in" in shown


def test_what_no_storage_can_take_is_never_overridden(bench: Bench, onblock: Cli) -> None:
    bench.put("checksums.sha256")
    assert bench.run()["blocked"] == 1
    assert [f.rule for f in found("checksums.sha256")] == ["unsafe"]
    done = onblock("overrides", "add", "job", "unsafe", "**", "--why", "I want it")
    assert (done.returncode, "cannot be overridden" in done.stderr) == (2, True)
    with Ledger.open() as ledger:  # nor by whoever gets past the command
        ledger.override("job", "unsafe", "**", who="eve", why="I want it")
    assert bench.run()["blocked"] == 1


def test_a_time_that_is_in_no_calendar_blocks_the_file_and_not_the_run(bench: Bench) -> None:
    bench.put("a.mp4")
    job = bench.job(path="{date}/{name}")
    with Ledger.open() as ledger, TransferRun(job, ledger) as run, run.pool.session(job.destination) as session:
        (passage,) = run.gate.judge([FileInfo("a.mp4", 4, 2**63 - 1 << 20)], session.features)
    assert (passage.state, [f.rule for f in passage.findings]) == (State.BLOCKED, ["unsafe"])


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job", "rule", "pattern", "why", "says"),
    [
        ("job", "reserved", "**", " ", "needs a reason"), ("nobody", "reserved", "**", "x", "there is no job 'nobody'"),
        ("job", "nonsense", "**", "x", "has no rule 'nonsense'; there are placeholder, template"),
        ("job", "unsafe", "**", "x", "cannot be overridden"), ("job", "reserved", "", "x", "a pattern is empty"),
        ("job", "reserved", "re:(", "x", "bad regular expression"), ("job", "reserved", "a\0b", "x", "NUL"),
    ],
)  # fmt: skip
def test_overrides_that_make_no_sense(bench: Bench, job: str, rule: str, pattern: str, why: str, says: str) -> None:
    bench.put("a")
    bench.run()
    with Ledger.open() as ledger:
        with pytest.raises(ConfigError, match=re.escape(says)):
            override(ledger, job, rule, pattern, who="eve", why=why)
        assert ledger.overrides() == []


@pytest.mark.parametrize(
    ("given", "says"),
    [("soon", "'soon' is no time"), ("999999999w", "is no time"), ("40000d", "more than a hundred years"), ("-1d", "is no time")],
)  # fmt: skip
def test_times_that_are_none(given: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        moment(given)


def test_times() -> None:
    now = now_ms()
    assert abs(moment("1h 30min") - now - 5_400_000) < 60_000
    assert moment("2027-01-31T12:00:00Z") == 1_801_396_800_000


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["add", "job", "reserved", "**"], "needs a reason"), (["revoke", "2", "--why", "x"], "was revoked already, by bob"),
        (["add", "job", "nonsense", "**", "--why", "x"], "has no rule 'nonsense'"),
        (["add", "job", "reserved", "**", "--why", "x", "--expires", "2020-01-01"], "would have expired"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(bench: Bench, onblock: Cli, args: list[str], says: str) -> None:
    bench.put("a")
    bench.run()
    allow("job", "reserved", "*.x")
    second = allow("job", "reserved", "*.y")
    with Ledger.open() as ledger:
        ledger.revoke(second.id, who="bob", why="no")
        before = ledger.overrides()
        done = onblock("overrides", *args)
        assert (done.returncode, done.stdout) == (2, ""), done
        assert says in done.stderr and done.stderr.startswith("onblock: ") and done.stderr.count("\n") == 1
        assert ledger.overrides() == before


def test_listed_and_taken_back(bench: Bench, onblock: Cli) -> None:
    bench.put("a")
    job = bench.yaml(gate={"own": [{"name": "no-b", "must_not": "b"}]})
    assert onblock("overrides", "add", job, "no-b", "re:\\d+b", "--why", "old").returncode == 0
    assert onblock("overrides", "add", job, "reserved", "*.x", "--why", "new", "--expires", "12h").returncode == 0
    done = onblock("overrides", "revoke", "1", "--why", "it was wrong")
    assert (done.returncode, "override 1 is revoked" in done.stdout) == (0, True)
    listed = json.loads(onblock("overrides", "list", "--json").stdout)["overrides"]
    assert [(o["id"], o["rule"], o["path"], o["state"]) for o in listed] == [
        (1, "no-b", "re:\\d+b", "revoked"), (2, "reserved", "*.x", "active"),
    ]  # fmt: skip
    assert listed[0]["revoked"]["why"] == "it was wrong"
    assert 11.9 * 3_600_000 < listed[1]["expires_at"] - listed[1]["made_at"] < 12.1 * 3_600_000
    shown = onblock("overrides", "list", "--job", "job", COLUMNS="200").stdout
    assert "re:\\d+b" in shown and "it was wrong" in shown


def test_a_rule_of_the_job_s_own_is_known_once_it_has_found_something(bench: Bench) -> None:
    bench.put("b.mp4")
    gate = {"own": [{"name": "no-b", "must_not": "b"}]}
    with pytest.raises(ConfigError, match="there is no job"):
        allow("job", "no-b", "**")
    assert bench.run(gate=gate)["blocked"] == 1
    assert "no-b: its path holds 'b'" in row_of("b.mp4")["message"]
    allow("job", "no-b", "**")
    assert bench.run(gate=gate)["delivered"] == 1


def test_the_example_in_the_readme(bench: Bench) -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```yaml\n(# added to card.yaml\ngate:.+?)```", readme, re.DOTALL)
    gate = yaml.safe_load(example)["gate"]
    for name in (
        "DCIM/{flight}.mp4",
        "DCIM/{flight}.json",
        "{{ x }}.csv",
        "CON.csv",
        "1.jpg",
        "MAP_1.jpg",
        "a.mp4",
        "Test.csv",
    ):
        bench.put(name)
    bench.run(gate=gate, name="card")
    with Ledger.open() as ledger:
        blocked = {r["path"]: r["message"] for r in ledger.files(states=[State.BLOCKED])}
    assert blocked.keys() == {"DCIM/{flight}.mp4", "DCIM/{flight}.json", "{{ x }}.csv", "1.jpg", "a.mp4", "Test.csv"}
    assert "this is a test recording" in blocked["Test.csv"]
    allow("card", "placeholder", "DCIM/*.mp4")
    assert bench.run(gate=gate, name="card")["delivered"] == 1
