"""``flowgrad completion SHELL``: print a script that makes a shell complete commands, options and their choices."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from flowgrad.tools.cli import SUBCOMMANDS, parser_of
from flowgrad.tools.parser import Parser

INSTALL = {"bash": "source <(flowgrad completion bash)", "zsh": "source <(flowgrad completion zsh)",
           "fish": "flowgrad completion fish | source"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    lines = "\n".join(f"  {shell:5} {line}" for shell, line in INSTALL.items())
    parser.description = f"{parser.description} In the start-up file of the shell:\n{lines}"
    parser.epilog = "example: flowgrad completion bash"
    parser.add_argument("shell", choices=INSTALL, metavar="SHELL", help=", ".join(INSTALL))


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    parsers = {name: parser_of(name) for name in SUBCOMMANDS}
    scripts: dict[str, Callable[[dict[str, Parser]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print(scripts[arguments.shell](parsers))
    return 0


def _choices(parser: Parser) -> dict[str, list[str]]:
    """Return the choices of the options that have some."""
    return {name: [str(c) for c in action.choices] for action in parser._actions if action.choices for name in action.option_strings}


def _bash(parsers: dict[str, Parser]) -> str:
    cases, values = [], []
    for name, parser in parsers.items():
        cases.append(f"    {name}) words='{' '.join(parser.options())}' ;;")
        values += [f"    {name}:{option}) words='{' '.join(choices)}' ;;" for option, choices in _choices(parser).items()]
    return f"""_flowgrad() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" command="${{COMP_WORDS[1]}}" words=''
  [[ ${{COMP_WORDS[0]##*/}} == flowgrad-run ]] && command=run
  COMPREPLY=()
  if [[ ${{COMP_WORDS[0]##*/}} == flowgrad && $COMP_CWORD -eq 1 ]]; then
    COMPREPLY=($(compgen -W '{' '.join(parsers)} --help --version' -- "$word")); return
  fi
  case "$command:$before" in
{chr(10).join(values)}
  esac
  if [[ -z $words && $word == -* ]]; then case "$command" in
{chr(10).join(cases)}
  esac; fi
  if [[ -n $words ]]; then COMPREPLY=($(compgen -W "$words" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
}}
complete -o filenames -F _flowgrad flowgrad flowgrad-run"""


def _zsh(parsers: dict[str, Parser]) -> str:
    return f"autoload -Uz compinit bashcompinit\n(( $+functions[compdef] )) || compinit\nbashcompinit\n{_bash(parsers)}"


def _fish(parsers: dict[str, Parser]) -> str:
    first = "complete -c flowgrad -n __fish_use_subcommand -f"
    lines = [f"{first} -a {name} -d {_quoted(SUBCOMMANDS[name])}" for name in parsers]
    for name, parser in parsers.items():
        places = [f"-c flowgrad -n '__fish_seen_subcommand_from {name}'", *(["-c flowgrad-run"] if name == "run" else [])]
        for action in parser._actions:
            lines += [f"complete {place} {_fish_option(action)}" for place in places if action.option_strings]
    return "\n".join(lines)


def _fish_option(action: argparse.Action) -> str:
    names = " ".join(f"-l {n[2:]}" if n.startswith("--") else f"-s {n[1:]}" if len(n) == 2 else f"-o {n[1:]}"
                     for n in action.option_strings)
    choices = f" -x -a {_quoted(' '.join(map(str, action.choices)))}" if action.choices else " -r" if action.nargs is None else ""
    return f"{names}{choices} -d {_quoted((action.help or '').split(';')[0])}"


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
