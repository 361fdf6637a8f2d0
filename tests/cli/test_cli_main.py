"""The door to all commands: names, exit statuses, one line for every failure."""

import subprocess
import sys
import tempfile
import types

import pytest

from visionattn import __version__, cli
from visionattn.errors import DataError


@pytest.fixture
def command(monkeypatch):
    """Put a command in place whose run is given."""

    def install(run):
        module = types.ModuleType("visionattn.cli.fake", "A command.")
        module.add_arguments = lambda parser: parser.add_argument("--number", type=int)
        module.run = run
        monkeypatch.setitem(sys.modules, "visionattn.cli.fake", module)
        monkeypatch.setitem(cli.COMMANDS, "fake", "a command")

    return install


def raising(error):
    def run(args):
        raise error

    return run


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_help_imports_nothing_large():
    code = (
        "import sys; from visionattn.cli import main; main(['--help'])\n"
        "loaded = {name.split('.')[0] for name in sys.modules}\n"
        "assert not loaded & {'torch', 'numpy', 'timm', 'rich', 'cv2', 'mmengine'}, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_help_of_a_command_has_a_short_usage_and_groups(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: visionattn train [CONFIG] [options]\n")
    common, fine_tuning, rest = text.index("--work-dir"), text.index("\nfine-tuning:\n"), text.index("--freeze")
    assert common < fine_tuning < rest
    assert "\n\nWith --data FOLDER and no CONFIG" in text  # a paragraph of its own
    assert cli.required_arguments(cli.build_parser("forge")) == "FOLDER [FOLDER ...] --out DIR"


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["visionattn", __version__]


def test_unknown_command(capsys):
    assert cli.main(["trian"]) == 2
    assert "error: no command 'trian'; commands: train, " in capsys.readouterr().err


def test_status_is_passed_on(command):
    command(lambda args: args.number)
    assert cli.main(["fake", "--number", "7"]) == 7


def test_wrong_arguments_are_status_2(command, capsys):
    command(lambda args: 0)
    with pytest.raises(SystemExit) as stop:
        cli.main(["fake", "--number", "seven"])
    assert stop.value.code == 2
    assert "--number" in capsys.readouterr().err


def test_own_errors_are_one_line(command, capsys):
    command(raising(DataError("x.jpg: does not\n   decode; replace it")))
    assert cli.main(["fake"]) == 1
    assert capsys.readouterr().err == "error: x.jpg: does not decode; replace it\n"


def test_other_errors_name_their_type_and_the_way_to_the_traceback(command, capsys):
    command(raising(KeyError("what")))
    assert cli.main(["fake"]) == 1
    text = capsys.readouterr().err
    assert "KeyError" in text
    assert "--debug" in text
    assert "Traceback" not in text


def test_long_messages_are_written_to_a_file(command, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    command(raising(RuntimeError("a compiler says:\nno\n" + "-I/a/path " * 7000)))
    assert cli.main(["fake"]) == 1
    text = capsys.readouterr().err
    assert len(text) < 600
    assert "RuntimeError: a compiler says: no" in text
    (file,) = tmp_path.iterdir()
    assert str(file) in text
    assert file.read_text().count("-I/a/path") == 7000


def test_debug_raises(command):
    command(raising(DataError("x")))
    with pytest.raises(DataError):
        cli.main(["fake", "--debug"])


def test_interrupt_is_status_130(command):
    command(raising(KeyboardInterrupt()))
    assert cli.main(["fake"]) == 130


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    assert stop.value.code == 0
    assert "--debug" in capsys.readouterr().out


@pytest.mark.parametrize("command_name", ["train", "test", "check"])
def test_flags_are_not_abbreviated(command_name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.build_parser(command_name).parse_args(["x.py", "--cfg", "a=1"])
    assert stop.value.code == 2
    assert "unrecognized arguments: --cfg" in capsys.readouterr().err


def test_a_flag_of_another_program_names_the_similar_one(capsys):
    with pytest.raises(SystemExit):
        cli.build_parser("train").parse_args(["x.py", "--device", "cpu"])
    assert "unrecognized arguments: --device cpu; did you mean --devices?" in capsys.readouterr().err
