"""Completion scripts, in the shells that are installed."""

import shutil
import subprocess

import pytest

from visionattn import cli
from visionattn.cli import completion
from visionattn.cli.completion import arguments
from visionattn.io.configs import list_configs

pytest.importorskip("mmdet")  # without it, no options of jobs are completed

CASES = {  # what is typed, and one of the completions; "" for none
    "visionattn tr": "train",
    "visionattn train --dat": "--data",
    "visionattn train --data ": "my data",
    "visionattn train --data=my": "my data",
    "visionattn train --epochs ": "",
    "visionattn train --from digi": "digits",
    "visionattn train --model dinat_pi": "dinat_pico",
    "visionattn train atss_dinat-pico_fpn_dig": "atss_dinat-pico_fpn_digits",
    "visionattn train --amp my_con": "my_config.py",
    "visionattn infer --model nucl": "nuclei",
    "visionattn infer --scales 0.5 -1 --save-t": "--save-txt",
    "visionattn infer an": "an image.png",
    "visionattn infer a.png an": "an image.png",
    "visionattn data conv": "convert",
    "visionattn data convert ": "my data",
    "visionattn data convert --from class": "class-folders",
    "visionattn export --dynamic batch si": "size",
    "visionattn configs nfa-vit-pub": "nfa-vit-published_4xb16-200e_brgen-512x512",
    "visionattn --show-completion fi": "fish",
}


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """The script of each shell as a file, in a folder with files and folders to complete."""
    folder = tmp_path_factory.mktemp("completion")
    found = arguments.all_arguments()
    for shell, write in completion.SHELLS.items():
        (folder / f"visionattn.{shell}").write_text(write(found))
    (folder / "here/my data").mkdir(parents=True)
    for name in ("an image.png", "my_config.py"):
        (folder / "here" / name).touch()
    return folder


def call(program: list[str], folder) -> str:
    done = subprocess.run(program, cwd=folder / "here", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


BASH = """\
source "$1"; PATH=  # no program is run
while IFS= read -r line; do
  COMP_WORDS=(${line//=/ = }); [[ $line == *" " ]] && COMP_WORDS+=("")
  COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMPREPLY=()
  _visionattn
  printf '%s|' "${COMPREPLY[@]}"; echo
done <<< "$2"
"""


def complete(folder, lines: list[str]) -> list[list[str]]:
    """Complete lines with bash."""
    output = call(["bash", "-c", BASH, "bash", str(folder / "visionattn.bash"), "\n".join(lines)], folder)
    return [line.split("|")[:-1] for line in output.splitlines()]


def test_bash(scripts):
    for (typed, expected), found in zip(CASES.items(), complete(scripts, list(CASES)), strict=True):
        last = typed.replace("=", " ").split(" ")[-1]
        assert all(word.startswith(last) for word in found), typed
        assert (expected in found) if expected else set(found) == {""}, typed


def test_bash_offers_every_option_and_name(scripts):
    lines = ["visionattn ", "visionattn test ", *(f"visionattn {name} -" for name in cli.COMMANDS)]
    commands, configs, *options = complete(scripts, lines)
    assert set(cli.COMMANDS) < set(commands)
    assert {config.name for config in list_configs()} < set(configs)
    for command, found in zip(cli.COMMANDS, options, strict=True):
        expected = {name for action in cli.build_parser(command)._actions for name in action.option_strings}
        assert set(found) == expected - {"-h"}, command


def test_fish(scripts):
    if not shutil.which("fish"):
        pytest.skip("needs fish")
    for typed, expected in CASES.items():
        code = "source $argv[1]; complete -C $argv[2]"
        output = call(["fish", "--no-config", "-c", code, str(scripts / "visionattn.fish"), typed], scripts)
        found = [line.split("\t")[0].rstrip("/") for line in output.splitlines()]
        assert (expected in [word.split("=")[-1] for word in found]) if expected else not found, typed


ZSH = """\
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "PROMPT=; fpath=($1 \\$fpath); autoload -Uz compinit; compinit -u -D; bindkey '^I' list-choices"
zpty -w shell "setopt no_beep; LISTMAX=9999; print rea''dy"
zpty -r shell output '*ready*'
zpty -w -n shell "$2"$'\\t'
zpty -r shell output "*$3*"
zpty -d shell
"""


def test_zsh(scripts):
    if not shutil.which("zsh"):
        pytest.skip("needs zsh")
    (scripts / "functions").mkdir()
    shutil.copy(scripts / "visionattn.zsh", scripts / "functions/_visionattn")
    for typed, expected in CASES.items():
        if expected and " " not in expected:  # it waits for the end of the word that is completed
            last = typed.replace("=", " ").split(" ")[-1]
            shown = f"[^-]{expected}" if last else expected
            call(["zsh", "-f", "-c", ZSH, "zsh", str(scripts / "functions"), typed, shown], scripts)


def test_words_are_accepted():
    """The parsers take what is completed in addition to their choices."""
    required = {
        "export": [],
        "infer": [],
        "train": [],
        "test": [],
        "attention": ["a.png"],
        "probe": ["a", "--model", "b"],
    }
    tried = 0
    for command, others in required.items():
        parser = cli.build_parser(command)
        for action in parser._actions:
            for word in arguments.WORDS.get(action.dest, ()):
                parser.parse_args([*others, action.option_strings[0], word])
                tried += 1
    assert tried >= 20


def test_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(completion, "all_arguments", lambda: {"train": []})
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "BASH_COMPLETION_USER_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert cli.main(["--install-completion"]) == 0
    assert "complete -c visionattn" in (tmp_path / ".config/fish/completions/visionattn.fish").read_text()
    assert cli.main(["--install-completion", "bash"]) == 0
    file = tmp_path / ".local/share/bash-completion/completions/visionattn"
    assert "complete -F _visionattn visionattn" in file.read_text()
    assert str(file) in capsys.readouterr().out
    assert cli.main(["--show-completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef visionattn\n")


@pytest.mark.parametrize("words", [["tcsh"], ["bash", "zsh"], []])
def test_other_shells(words, monkeypatch, capsys):
    monkeypatch.delenv("SHELL", raising=False)
    assert cli.main(["--show-completion", *words]) == 2
    assert capsys.readouterr().err.startswith("error: ")
