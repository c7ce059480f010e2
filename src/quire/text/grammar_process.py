"""The process that tries grammars out: a front end starts it, gives it one after the other, and may kill it.

Started as `python -P -m quire.text.grammar_process TOKENIZER ROWS EOS_IDS`. It reads a 4-byte little-endian length and
a grammar in UTF-8, and answers with a length and what is wrong with it, nothing when it can be compiled. A grammar that
takes longer than it may ends the process, also while the library is at it, and so does the end of its input.
"""

from __future__ import annotations

import resource
import signal
import struct
import sys
from typing import BinaryIO

from quire.base.errors import QuireError
from quire.text.grammar_matcher import check_first_token, compile_grammar
from quire.text.grammar_vocabulary import build_vocabulary
from quire.text.tokenizer import Tokenizer

LENGTH = struct.Struct("<I")
CHECK_SECONDS = 5
MAX_MEMORY_BYTES = 4 * 2**30
"""Address space; a grammar whose states would need more fails here and not beside the model."""


def main() -> int:
    """Answer until the input ends; returns the exit status."""
    tokenizer_path, num_rows, eos = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    eos_token_ids = [int(text) for text in eos.split(",") if text]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the front end to act on
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    refusal, vocabulary = None, None
    try:
        vocabulary = build_vocabulary(Tokenizer.load(tokenizer_path), num_rows=num_rows, eos_token_ids=eos_token_ids)
    except QuireError as error:
        refusal = str(error)
    _send("")  # ready
    while (grammar := _receive(sys.stdin.buffer)) is not None:
        if vocabulary is None:
            _send(refusal or "")
            continue
        signal.setitimer(signal.ITIMER_REAL, CHECK_SECONDS + 1)  # the signal ends the process, wherever it is
        try:
            check_first_token(compile_grammar(vocabulary, grammar))
            answer = ""
        except QuireError as error:
            answer = str(error)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(answer)
    return 0


def _receive(stream: BinaryIO) -> str | None:
    header = stream.read(LENGTH.size)
    if len(header) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(header)
    return stream.read(length).decode("utf-8", "surrogatepass")


def _send(answer: str) -> None:
    body = answer.encode("utf-8", "replace")
    sys.stdout.buffer.write(LENGTH.pack(len(body)) + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
