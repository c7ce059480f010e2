"""Files and batches on disk: who owns them, what survives, and what is never half-done."""

import json

import pytest

from quire.base.errors import ConfigError, InvalidRequestError
from quire.protocol.batches import BatchObject
from quire.server.batches.database import Database
from quire.server.batches.files import FileStore
from quire.server.batches.store import BatchStore
from quire.server.errors import StoredObjectNotFoundError


class Opened:
    """A folder's stores, with a clock to set."""

    def __init__(self, folder) -> None:
        self.now = 1_000_000.0
        self.database = Database(folder, clock=lambda: self.now)
        self.files = FileStore(self.database)
        self.batches = BatchStore(self.database, self.files)

    def file(self, text="x", owner="a", **options):
        content = self.files.new_content()
        content.write_text(text)
        return self.files.add(content, owner=owner, filename="f.jsonl", purpose="batch", **options)

    def batch(self, file_id, owner="a", status="in_progress"):
        batch = BatchObject(
            id=f"batch_{file_id}",
            endpoint="/v1/completions",
            input_file_id=file_id,
            completion_window="24h",
            status=status,
            created_at=self.database.now(),
            expires_at=self.database.now() + 86400,
        )
        self.batches.add(batch, owner)
        return batch


@pytest.fixture
def opened(tmp_path):
    opened = Opened(tmp_path / "store")
    yield opened
    opened.database.close()


def test_a_file_is_its_owners_and_nobody_elses(opened):
    mine, theirs = opened.file("mine"), opened.file("theirs", owner="b")
    assert opened.files.get(mine.id, "a") == mine
    assert opened.files.content(mine.id).read_text() == "mine"
    assert [file.id for file in opened.files.list("a")] == [mine.id]
    for call in (opened.files.get, opened.files.delete):
        with pytest.raises(StoredObjectNotFoundError):
            call(theirs.id, "a")
    assert opened.files.stored_bytes() == len("minetheirs")


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
    assert opened.files.list("a") == []


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
        opened.batches.add_result(batch.id, line, {"custom_id": name}, is_failure=is_failure)
    assert opened.batches.answered_lines(batch.id) == {1, 2, 3}
    counts = opened.batches.get(batch.id).request_counts
    assert (counts.completed, counts.failed) == (2, 1)
    ended = opened.batches.finish(batch.id, status="completed", completed_at=5)

    def names(file_id):
        return [json.loads(line)["custom_id"] for line in opened.files.content(file_id).read_text().splitlines()]

    assert names(ended.output_file_id) == ["a", "c"] and names(ended.error_file_id) == ["b"]
    assert opened.batches.next_open() is None


def test_a_batch_without_failures_has_no_error_file(opened):
    batch = opened.batch(opened.file().id)
    opened.batches.add_result(batch.id, 1, {}, is_failure=False)
    ended = opened.batches.finish(batch.id, status="completed")
    assert ended.output_file_id and ended.error_file_id is None


def test_everything_is_there_after_a_restart_and_leavings_are_not(tmp_path):
    opened = Opened(tmp_path)
    file = opened.file("kept")
    batch = opened.batch(file.id)
    opened.batches.add_result(batch.id, 1, {}, is_failure=False)
    opened.files.new_content().write_text("half an upload")
    opened.database.close()
    again = Opened(tmp_path)
    assert again.batches.next_open().id == batch.id and again.batches.answered_lines(batch.id) == {1}
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
        opened.batches.add_result(batch.id, 1, {}, is_failure=False)
        raise ZeroDivisionError
    assert opened.batches.answered_lines(batch.id) == set()


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
