"""Answers over plain sockets: bodies in chunks, of known length and until the end, and what is no HTTP."""

import asyncio
import contextlib

import pytest

from quire.conformance.outcome import FailedCheckError
from quire.conformance.raw import connect

HEAD = b"HTTP/1.1 200 OK\r\nX-Name: a: b\r\n"


async def exchange(*parts):
    """The answer to a request of a server that writes these parts with pauses between them and closes."""
    closed = asyncio.Event()

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError):  # the client may have seen enough
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.02)
            writer.close()
            await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        try:
            return await ask(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        finally:
            await closed.wait()


async def ask(url):
    async with connect(url) as one:
        await one.send("GET", "/", {"Host": "here"}, b"")
        answer = await one.head()
        pieces = [piece async for piece in one.arrivals(answer)]
    assert b"".join(pieces) == answer.body
    return answer


async def test_chunks_are_taken_apart_and_their_arrivals_noted():
    answer = await exchange(
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"2;x=y\r\nde\r\n", b"0\r\n\r\n"
    )
    assert answer.headers["x-name"] == "a: b"
    assert [data for _, data in answer.arrivals] == [b"abc", b"de"]
    assert answer.arrivals[0][0] < answer.arrivals[1][0]
    assert answer.is_complete


async def test_a_chunk_torn_over_two_reads_is_put_together():
    answer = await exchange(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"5\r\nab", b"cde\r\n0\r\n\r\n")
    assert answer.body == b"abcde"
    assert answer.is_complete


async def test_a_chunked_body_without_its_end_is_incomplete():
    answer = await exchange(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n")
    assert answer.body == b"abc"
    assert not answer.is_complete


async def test_a_body_of_known_length_ends_there():
    answer = await exchange(HEAD + b"Content-Length: 3\r\n\r\n", b"abcde")
    assert answer.body == b"abc"
    assert answer.is_complete


async def test_a_body_without_a_length_ends_with_the_connection():
    answer = await exchange(HEAD + b"\r\n", b"abc")
    assert answer.body == b"abc"
    assert answer.is_complete


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (b"", "a connection that closed"),
        (b"nonsense\r\n\r\n", "'nonsense'"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "zz"),
    ],
)
async def test_what_is_no_http_is_a_failure_that_shows_it(part, words):
    with pytest.raises(FailedCheckError, match=words):
        await exchange(part)
