"""Files and batches on disk: who owns them, what survives, and what is never half-done."""

import errno
import json
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from quire.base.errors import ConfigError, InvalidRequestError
from quire.protocol.batches import BatchObject
from quire.server.batches import database
from quire.server.batches.database import Database
from quire.server.batches.files import FileStore, StorageLimits
from quire.server.batches.pages import PageQuery
from quire.server.batches.results import LineResult, ResultStore
from quire.server.batches.store import BatchStore
from quire.server.errors import StorageFullError, StorageQuotaError, StoredObjectNotFoundError


class Opened:
    """A folder's stores, with a clock to set."""

    def __init__(self, folder, **limits) -> None:
        self.now = 1_000_000.0
        self.database = Database(folder, clock=lambda: self.now)
        self.files = FileStore(self.database, StorageLimits(**limits))
        self.results = ResultStore(self.database)
        self.batches = BatchStore(self.database, self.files, self.results)
        self.num_batches = 0

    def file(self, text="x", owner="a", **options):
        with self.files.draft() as draft:
            draft.path.write_text(text)
            return self.files.add_within_quota(draft, owner=owner, filename="f.jsonl", purpose="batch", **options)

    def result(self, batch, line, result, *, is_failure=False, **options):
        return self.results.add(batch.id, LineResult(line=line, result=result, is_failure=is_failure), **options)

    def names(self, file_id):
        return [json.loads(line)["custom_id"] for line in self.files.content(file_id).read_text().splitlines()]

    def num_results(self):
        return self.database.one("SELECT COUNT(*) FROM results")[0]

    def batch(self, file_id, owner="a", status="in_progress", **options):
        self.num_batches += 1
        batch = BatchObject(
            id=f"batch_{file_id}_{self.num_batches}",
            endpoint="/v1/completions",
            input_file_id=file_id,
            completion_window="24h",
            status=status,
            created_at=self.database.now(),
            expires_at=self.database.now() + 86400,
        )
        self.batches.add(batch, owner, **options)
        return batch


def ids(page):
    items, has_more = page
    return [item.id for item in items], has_more


@pytest.fixture
def opened(tmp_path):
    opened = Opened(tmp_path / "store")
    yield opened
    opened.database.close()


def test_a_file_is_its_owners_and_nobody_elses(opened):
    mine, theirs = opened.file("mine"), opened.file("theirs", owner="b")
    assert opened.files.get(mine.id, "a") == mine
    assert opened.files.content(mine.id).read_text() == "mine"
    assert ids(opened.files.page("a", PageQuery(limit=9))) == ([mine.id], False)
    for call in (opened.files.get, opened.files.delete):
        with pytest.raises(StoredObjectNotFoundError):
            call(theirs.id, "a")
    assert opened.files.used_bytes() == len("minetheirs") and opened.files.used_bytes("a") == len("mine")


def test_ids_are_looked_up_and_never_joined_to_a_path(opened):
    """SEC-8."""
    (opened.database.folder / "secret").write_text("s")
    for name in ("../secret", "..", "", "a" * 10_000):
        with pytest.raises(StoredObjectNotFoundError) as caught:
            opened.files.get(name, "a")
        assert len(str(caught.value)) < 200


def test_a_file_ends_when_its_time_is_over(opened):
    file = opened.file(expires_after=3600)
    opened.now += 3599
    assert opened.files.get(file.id, "a")
    opened.now += 1
    with pytest.raises(StoredObjectNotFoundError):
        opened.files.get(file.id, "a")
    assert ids(opened.files.page("a", PageQuery(limit=9))) == ([], False)
    assert opened.files.delete_expired() == 1 and not opened.files.content(file.id).exists()


def test_the_input_of_an_open_batch_cannot_be_deleted(opened):
    file = opened.file()
    batch = opened.batch(file.id)
    with pytest.raises(InvalidRequestError, match=batch.id):
        opened.files.delete(file.id, "a")
    opened.batches.change(batch.id, only_from=["in_progress"], status="cancelled")
    opened.files.delete(file.id, "a")
    assert not opened.files.content(file.id).exists()


def test_a_batch_changes_only_from_the_states_named(opened):
    batch = opened.batch(opened.file().id)
    assert opened.batches.change(batch.id, only_from=["validating"], status="failed").status == "in_progress"
    assert opened.batches.change(batch.id, only_from=["in_progress"], status="cancelling").status == "cancelling"
    assert opened.batches.get(batch.id, "a").status == "cancelling"
    with pytest.raises(StoredObjectNotFoundError):
        opened.batches.get(batch.id, "b")


def test_the_first_result_of_a_line_counts_and_files_are_in_the_order_of_the_lines(opened):
    batch = opened.batch(opened.file().id)
    for line, name, is_failure in [(3, "c", False), (1, "a", False), (1, "again", False), (2, "b", True)]:
        is_new = opened.result(batch, line, {"custom_id": name}, is_failure=is_failure)
        assert is_new == (name != "again")
    assert opened.results.answered_lines(batch.id) == {1, 2, 3}
    counts = opened.batches.get(batch.id).request_counts
    assert (counts.completed, counts.failed) == (2, 1)
    ended = opened.batches.finish(batch.id, status="completed", completed_at=5)
    assert opened.names(ended.output_file_id) == ["a", "c"] and opened.names(ended.error_file_id) == ["b"]
    assert opened.batches.next_open("a") is None and opened.batches.open_owners() == []


def test_a_batch_without_failures_has_no_error_file(opened):
    batch = opened.batch(opened.file().id)
    opened.result(batch, 1, {})
    ended = opened.batches.finish(batch.id, status="completed")
    assert ended.output_file_id and ended.error_file_id is None


def test_everything_is_there_after_a_restart_and_leavings_are_not(tmp_path):
    opened = Opened(tmp_path)
    file = opened.file("kept")
    batch = opened.batch(file.id)
    opened.result(batch, 1, {})
    opened.files.content("file-half").write_text("half an upload")
    opened.database.close()
    again = Opened(tmp_path)
    assert again.batches.next_open("a").id == batch.id and again.results.answered_lines(batch.id) == {1}
    assert [path.name for path in (tmp_path / "files").iterdir()] == [file.id]
    again.database.close()


def test_a_folder_has_one_owner(tmp_path, opened):
    with pytest.raises(ConfigError, match="in use by another server"):
        Database(tmp_path / "store")


def test_a_folder_that_cannot_be_is_refused_with_the_setting(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--files-dir"):
        Database(tmp_path / "file" / "store")


def test_a_change_that_fails_midway_leaves_nothing(opened):
    batch = opened.batch(opened.file().id)
    with pytest.raises(ZeroDivisionError), opened.database.transaction():
        opened.result(batch, 1, {})
        raise ZeroDivisionError
    assert opened.results.answered_lines(batch.id) == set()


def test_an_expired_file_that_an_open_batch_reads_outlives_a_restart(tmp_path):
    """Without its input the batch could never end, and all batches behind it would wait for it."""
    opened = Opened(tmp_path / "store")
    read, unread = opened.file(expires_after=3600), opened.file(expires_after=3600)
    opened.batch(read.id)
    opened.database.close()
    opened = Opened(tmp_path / "store")
    opened.now += 7200
    FileStore(opened.database)
    assert opened.files.content(read.id).exists() and not opened.files.content(unread.id).exists()
    opened.database.close()


@pytest.mark.parametrize("is_ascending", [False, True])
def test_lists_are_read_page_by_page_in_their_order(opened, is_ascending):
    wanted = [opened.file().id for _ in range(5)]
    opened.file(owner="b")
    if not is_ascending:
        wanted.reverse()
    found, after = [], None
    while True:
        page, has_more = ids(opened.files.page("a", PageQuery(limit=2, after=after, is_ascending=is_ascending)))
        found, after = found + page, page[-1]
        if not has_more:
            break
    assert found == wanted


def test_a_page_reads_no_more_than_it_shows(opened):
    """A tenant with a hundred thousand batches asks for the newest one."""
    for _ in range(40):
        opened.batch(opened.file().id)
    read = []
    opened.database._connection.set_trace_callback(read.append)
    shown, has_more = opened.batches.page("a", PageQuery(limit=3))
    opened.database._connection.set_trace_callback(None)
    assert len(shown) == 3 and has_more and len(read) == 1 and "LIMIT 4" in read[0]
    plan = opened.database.all(f"EXPLAIN QUERY PLAN {read[0]}")
    assert "batches_by_owner" in plan[0][-1] and len(plan) == 1  # in the index's order, without sorting


def test_after_names_an_item_of_the_same_list(opened):
    theirs = opened.file(owner="b")
    with pytest.raises(InvalidRequestError, match="after"):
        opened.files.page("a", PageQuery(limit=2, after=theirs.id))


@pytest.mark.parametrize(("limits", "who"), [({"tenant_bytes": 10}, "your files"), ({"total_bytes": 10}, "all files")])
def test_more_than_the_quota_is_refused_and_leaves_nothing(tmp_path, limits, who):
    opened = Opened(tmp_path, **limits)
    kept = opened.file("x" * 8)
    with pytest.raises(StorageQuotaError, match=f"{who} take 8 bytes, and with 3 more"):
        opened.file("x" * 3)
    if "tenant_bytes" in limits:
        opened.file("x" * 3, owner="b")
    assert opened.files.content(kept.id).exists() and opened.files.used_bytes("a") == 8
    opened.files.delete(kept.id, "a")
    opened.file("x" * 3)
    assert len(list((tmp_path / "files").iterdir())) == (2 if "tenant_bytes" in limits else 1)
    opened.database.close()


def test_results_count_until_they_are_in_a_file_which_is_written_beyond_the_quota(tmp_path):
    """What was computed is kept; the next upload is what the quota stops."""
    opened = Opened(tmp_path, tenant_bytes=50)
    batch = opened.batch(opened.file("x" * 10).id)
    opened.result(batch, 1, {"custom_id": "y" * 100})
    used = opened.files.used_bytes("a")
    assert used > 110
    opened.batches.finish(batch.id, status="completed")
    assert opened.files.used_bytes("a") == used + 1  # the line's end
    with pytest.raises(StorageQuotaError):
        opened.files.check_room("a", 0)
    opened.database.close()


def test_files_stay_as_long_as_the_retention_says_unless_they_have_a_time_of_their_own(tmp_path):
    opened = Opened(tmp_path, retention_seconds=30 * 86400)
    now = int(opened.now)
    assert opened.file().expires_at == now + 30 * 86400
    assert opened.file(expires_after=3600).expires_at == now + 3600
    batch, brief = opened.batch(opened.file().id), opened.batch(opened.file().id, output_lifetime=7200)
    expiries = []
    for one in (batch, brief):
        opened.result(one, 1, {})
        ended = opened.batches.finish(one.id, status="completed")
        expiries.append(opened.files.get(ended.output_file_id).expires_at)
    assert expiries == [now + 30 * 86400, now + 7200]
    opened.now += 7200
    assert opened.files.delete_expired() == 2
    opened.database.close()


def test_batches_that_are_over_go_when_their_files_do(tmp_path):
    """A server that runs for years does not keep a row for every batch it ever had."""
    opened = Opened(tmp_path, retention_seconds=3600)
    going_on, over, long = (opened.batch(opened.file().id, output_lifetime=life) for life in (None, 60, 7200))
    for batch in (over, long):
        opened.result(batch, 1, {})
        opened.batches.finish(batch.id, status="completed")
    failed = opened.batch(opened.file().id, status="validating")
    opened.now += 1800
    opened.batches.change(failed.id, only_from=["validating"], status="failed")
    kept = []
    for later in (1799, 1, 1800, 1800):
        opened.now += later
        opened.files.delete_expired()
        while opened.batches.delete_over():
            pass
        kept.append({row[0] for row in opened.database.all("SELECT id FROM batches")})
    assert kept[0] == {going_on.id, over.id, long.id, failed.id}
    assert kept[1] == {going_on.id, long.id, failed.id}
    assert kept[2] == {going_on.id, long.id}
    assert kept[3] == {going_on.id}
    while opened.results.prune():
        pass
    opened.result(going_on, 1, {})
    assert opened.num_results() == 1
    opened.database.close()


def test_without_a_retention_batches_stay(opened):
    batch = opened.batch(opened.file().id, output_lifetime=60)
    opened.batches.finish(batch.id, status="completed")
    opened.now += 100 * 365 * 86400
    assert opened.batches.delete_over() == 0 and opened.batches.get(batch.id).status == "completed"


def test_results_go_once_their_batch_is_over_and_not_before(opened):
    over, going_on = opened.batch(opened.file().id), opened.batch(opened.file().id)
    for line in range(600):
        opened.result(over, line, {"custom_id": str(line)})
    opened.result(going_on, 1, {})
    assert opened.results.prune() == 0
    ended = opened.batches.finish(over.id, status="completed")
    while opened.results.prune():
        pass
    assert opened.num_results() == 1 and opened.results.answered_lines(going_on.id) == {1}
    assert opened.batches.get(over.id).request_counts.completed == 600
    assert opened.names(ended.output_file_id) == [str(line) for line in range(600)]


@pytest.mark.parametrize("status", ["cancelling", "finalizing", "completed"])
def test_a_result_that_comes_too_late_is_not_kept(opened, status):
    batch = opened.batch(opened.file().id)
    opened.batches.change(batch.id, only_from=["in_progress"], status=status)
    assert not opened.result(batch, 1, {})
    assert opened.results.answered_lines(batch.id) == set()
    assert opened.result(batch, 2, {}, only_in=("finalizing",)) == (status == "finalizing")


def test_others_use_the_database_while_a_batch_writes_its_files(opened, monkeypatch):
    batch = opened.batch(opened.file().id)
    for line in range(3):
        opened.result(batch, line, {"custom_id": str(line)})
    began, goes_on, real = threading.Event(), threading.Event(), opened.files.seal

    def slow(draft):
        began.set()
        assert goes_on.wait(10)
        real(draft)

    monkeypatch.setattr(opened.files, "seal", slow)
    writing = threading.Thread(target=opened.batches.finish, args=(batch.id,), kwargs={"status": "completed"})
    writing.start()
    assert began.wait(10)
    other = opened.batch("file-other")
    assert opened.result(other, 1, {}) and opened.batches.get(batch.id).status == "in_progress"
    goes_on.set()
    writing.join()
    assert opened.batches.get(batch.id).status == "completed"


def test_a_disk_that_is_full_while_the_files_are_written_loses_nothing(opened, monkeypatch):
    batch = opened.batch(opened.file().id)
    for line in range(3):
        opened.result(batch, line, {"custom_id": str(line)}, is_failure=line == 2)
    before, real = set(opened.files.content("x").parent.iterdir()), opened.files.seal

    def full(draft):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(opened.files, "seal", full)
    with pytest.raises(StorageFullError):
        opened.batches.finish(batch.id, status="completed")
    assert set(opened.files.content("x").parent.iterdir()) == before
    assert opened.batches.get(batch.id).status == "in_progress" and opened.num_results() == 3
    monkeypatch.setattr(opened.files, "seal", real)
    ended = opened.batches.finish(batch.id, status="completed")
    assert opened.names(ended.output_file_id) == ["0", "1"] and opened.names(ended.error_file_id) == ["2"]


def test_a_database_that_cannot_grow_says_that_the_disk_is_full_and_goes_on_when_it_can(opened):
    batch = opened.batch(opened.file().id)
    (pages,) = opened.database.one("PRAGMA page_count")
    opened.database.one(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFullError):
        opened.result(batch, 1, {"custom_id": "x" * 100_000})
    assert opened.num_results() == 0 and opened.batches.get(batch.id).request_counts.completed == 0
    opened.database.one(f"PRAGMA max_page_count = {pages + 1000}")
    assert opened.result(batch, 1, {"custom_id": "x" * 100_000})


def test_other_failures_of_the_disk_are_not_called_full(opened):
    with pytest.raises(PermissionError), opened.files.draft():
        raise PermissionError(errno.EACCES, "no")
    with pytest.raises(sqlite3.OperationalError), opened.database.transaction():
        opened.database.write("SELECT nonsense")


_KILLED = """
import os, signal, sys
from pathlib import Path
from quire.server.batches.database import Database
from quire.server.batches.files import FileStore
from quire.server.batches.results import ResultStore
from quire.server.batches.store import BatchStore

folder, moment, batch_id = sys.argv[1:]
database = Database(Path(folder))
files, results = FileStore(database), ResultStore(database)
batches = BatchStore(database, files, results)

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "before a file is sealed":
    files.seal = die
elif moment == "between the two files":
    real, calls = files.add, []
    files.add = lambda *a, **k: die() if calls else (calls.append(1), real(*a, **k))[1]
elif moment == "before the commit":
    batches._put = die
batches.finish(batch_id, status="completed")
if moment == "before results go":
    die()
results.prune()
die()
"""


@pytest.mark.parametrize(
    "moment",
    [
        "before a file is sealed",
        "between the two files",
        "before the commit",
        "before results go",
        "after everything",
    ],
)
def test_a_kill_while_a_batch_ends_leaves_exactly_one_result_per_line(tmp_path, moment):
    """N9: at whatever moment, the next start has all lines once, and no content that belongs to nobody."""
    opened = Opened(tmp_path)
    batch = opened.batch(opened.file().id)
    for line in range(20):
        opened.result(batch, line, {"custom_id": str(line)}, is_failure=line % 5 == 0)
    opened.database.close()
    ended = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path), moment, batch.id], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    opened = Opened(tmp_path)
    found = opened.batches.next_open("a")
    assert (found is None) == moment.startswith(("before results", "after"))
    done = opened.batches.get(batch.id) if found is None else opened.batches.finish(batch.id, status="completed")
    while opened.results.prune():
        pass
    names = opened.names(done.output_file_id) + opened.names(done.error_file_id)
    assert sorted(names, key=int) == [str(line) for line in range(20)]
    assert opened.num_results() == 0
    contents = {path.name for path in (tmp_path / "files").iterdir()}
    assert contents == {batch.input_file_id, done.output_file_id, done.error_file_id}
    opened.database.close()


def test_a_folder_of_the_layout_before_is_brought_to_this_one(tmp_path):
    old = sqlite3.connect(tmp_path / "batches.sqlite")
    old.executescript(database._MIGRATIONS[0])
    for name, status in (("open", "in_progress"), ("over", "completed")):
        made = BatchObject(
            id=name,
            endpoint="/v1/completions",
            input_file_id="file-1",
            completion_window="24h",
            status=status,
            created_at=1,
            expires_at=2,
        )
        encoded = json.dumps({key: value for key, value in vars_of(made).items() if key not in ("usage", "model")})
        row = (name, "a", status, "file-1", encoded.encode())
        old.execute("INSERT INTO batches (id, owner, status, input_file_id, object) VALUES (?, ?, ?, ?, ?)", row)
        for line in range(3):
            old.execute("INSERT INTO results VALUES (?, ?, ?, ?)", (name, line, line == 2, b"{}"))
    old.commit()
    old.close()
    opened = Opened(tmp_path)
    for name in ("open", "over"):
        counts = opened.batches.get(name).request_counts
        assert (counts.completed, counts.failed) == (2, 1)
    while opened.results.prune():
        pass
    assert opened.results.answered_lines("open") == {0, 1, 2} and opened.num_results() == 3
    assert opened.files.used_bytes() == 6
    ends = dict(opened.database.all("SELECT id, ended_at FROM batches"))
    assert ends["open"] is None and abs(ends["over"] - time.time()) < 600, "its end is not known: it stays from now on"
    opened.database.close()
    Opened(tmp_path).database.close()


def vars_of(struct):
    return json.loads(msgspec.json.encode(struct))


def test_a_folder_of_a_newer_version_is_left_alone(tmp_path):
    newer = sqlite3.connect(tmp_path / "batches.sqlite")
    newer.execute("PRAGMA user_version = 99")
    newer.close()
    with pytest.raises(ConfigError, match="newer version"):
        Database(Path(tmp_path))
