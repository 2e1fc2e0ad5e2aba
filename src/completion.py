"""Shell completion, from the table of verbs."""

from __future__ import annotations

import sys

from .console import program
from .core.errors import UsageError
from .options import COMMON, VERBS

_BASH = """\
# completion of {program}; from: {program} completion bash
_{name}_complete() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}}
    for i in "${{!COMP_WORDS[@]}}"; do
        case ${{COMP_WORDS[i]}} in *client.py|microcluster) verb=${{COMP_WORDS[i+1]}}; at=$((i+1)); break;; esac
    done
    if [ "$COMP_CWORD" -le "${{at:-1}}" ]; then COMPREPLY=($(compgen -W "{verbs}" -- "$word")); return; fi
    case $verb in
{cases}
    esac
    [ ${{#COMPREPLY[@]}} -eq 0 ] && COMPREPLY=($(compgen -f -- "$word"))
}}
complete -o filenames -F _{name}_complete client.py ./client.py microcluster
"""
_ZSH = """\
#compdef client.py microcluster
# completion of {program}; from: {program} completion zsh
_{name}() {{
    local -a verbs flags
    verbs=(
{verbs}
    )
    if (( CURRENT == 2 )); then _describe command verbs; return; fi
    case $words[2] in
{cases}
    esac
    if [[ $words[CURRENT] == -* ]]; then compadd -- $flags; else _files; fi
}}
compdef _{name} client.py microcluster
"""


def flags_of(verb: str) -> list[str]:
    """All flags of a verb."""
    common = () if VERBS[verb].takes == "shell" else COMMON
    return [option.flag for option in (*VERBS[verb].options, *common)] + ["--help"]


def bash() -> str:
    cases = "\n".join(
        f'        {verb}) COMPREPLY=($(compgen -W "{" ".join(flags_of(verb))}" -- "$word"));;' for verb in VERBS
    )
    return _BASH.format(program=program(), name="microcluster", verbs=" ".join(VERBS), cases=cases)


def zsh() -> str:
    verbs = "\n".join(f"        {name}:'{verb.help}'" for name, verb in VERBS.items())
    cases = "\n".join(f"        {verb}) flags=({' '.join(flags_of(verb))});;" for verb in VERBS)
    return _ZSH.format(program=program(), name="microcluster", verbs=verbs, cases=cases)


def fish() -> str:
    lines = [f"# completion of {program()}; from: {program()} completion fish"]
    for command in ("client.py", "microcluster"):
        for name, verb in VERBS.items():
            lines.append(f"complete -c {command} -n __fish_use_subcommand -a {name} -d '{verb.help}'")
            for option in verb.options:
                value = "" if option.parse is None else " -r"
                text = option.help.replace("'", "\\'")
                lines.append(
                    f"complete -c {command} -n '__fish_seen_subcommand_from {name}' -l {option.flag[2:]}{value} -d '{text}'"
                )
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Print the script of a shell."""
    shells = {"bash": bash, "zsh": zsh, "fish": fish}
    if len(words) != 1 or words[0] not in shells:
        raise UsageError("which shell? completion bash, completion zsh or completion fish")
    sys.stdout.write(shells[words[0]]())
    return 0
