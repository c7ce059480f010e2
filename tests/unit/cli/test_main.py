import argparse
import subprocess
import sys
import types

import pytest

from quire import __version__
from quire.base.errors import ConfigError, WeightError
from quire.cli import main as cli


@pytest.fixture
def command(monkeypatch):
    """Install a subcommand `probe` whose run does what the test says, and call `quire probe`."""

    def call(run, *words: str) -> int:
        module = types.ModuleType("probe", "A probe.")
        module.configure = lambda parser: parser.add_argument("--max-tokens", type=int)
        module.run = run
        monkeypatch.setitem(sys.modules, "probe", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe", "a probe"))
        return cli.main(["probe", *words])

    return call


def raiser(error):
    def run(_: argparse.Namespace) -> int:
        raise error

    return run


def test_version_and_overview(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"quire {__version__}\n"
    assert cli.main(["--help"]) == 0
    assert cli.main([]) == 2


def test_the_overview_lists_every_command(capsys):
    cli.main(["--help"])
    printed = capsys.readouterr().out
    assert [name for name in cli.COMMANDS if f"  {name} " not in printed] == []


def test_an_unknown_command_names_the_nearest(capsys):
    assert cli.main(["srve"]) == 2
    assert "did you mean serve?" in capsys.readouterr().err


def test_an_unknown_option_names_the_nearest(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(lambda _: 0, "--max-token", "3")
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "quire probe: error: unknown argument '--max-token'; did you mean --max-tokens?"
    )


@pytest.mark.parametrize(
    ("error", "status", "cause"),
    [
        (ConfigError("port is taken"), 2, "port is taken"),
        (WeightError("torn file"), 1, "torn file"),
        (FileNotFoundError(2, "No such file", "x.jsonl"), 1, "[Errno 2] No such file: 'x.jsonl'"),
    ],
)
def test_an_expected_failure_is_one_line(command, capsys, error, status, cause):
    assert command(raiser(error)) == status
    assert capsys.readouterr().err == f"quire probe: error: {cause}\n"


def test_traceback_is_printed_when_asked_and_the_cause_stays_last(command, capsys):
    command(raiser(ConfigError("port is taken")), "--traceback")
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1] == "quire probe: error: port is taken"


def test_a_bug_shows_its_traceback_and_the_cause_stays_last(command, capsys):
    assert command(raiser(ZeroDivisionError("by zero"))) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1] == "quire probe: error: ZeroDivisionError: by zero"


def test_an_interruption_has_the_status_shells_expect(command, capsys):
    assert command(raiser(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == ""


def test_a_status_is_passed_on(command):
    assert command(lambda _: 7) == 7


def test_a_reader_that_leaves_early_gets_no_traceback():
    code = (
        "import sys, types\n"
        "from quire.cli import main as cli\n"
        "probe = types.ModuleType('probe', 'A probe.')\n"
        "probe.configure = lambda parser: None\n"
        "def run(_):\n"
        "    for _ in range(100000): print('line')\n"
        "    return 0\n"
        "probe.run = run\n"
        "sys.modules['probe'] = probe\n"
        "cli.COMMANDS['probe'] = ('probe', '')\n"
        "sys.exit(cli.main(['probe']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


def test_an_unknown_option_of_a_subcommands_kind_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["bench", "offline", "--num-request", "3"])
    assert stopped.value.code == 2
    assert "did you mean --num-requests?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["bench"], "usage: quire bench [OPTIONS] {offline,serving,steps,paging,startup,compare,batch,ops,accuracy}"),
        (["bench", "offline"], "usage: quire bench offline [OPTIONS] [MODEL]"),
        (["run-batch"], "usage: quire run-batch [OPTIONS] -i FILE -o FILE"),
    ],
)
def test_the_usage_line_is_short_and_names_what_is_required(words, usage, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words, "--help"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.splitlines()[0] == usage
