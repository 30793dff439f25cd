"""`slimdown completion SHELL`: a script that completes verbs, options and settings.

eval "$(slimdown completion bash)"           also zsh, after compinit
slimdown completion fish | source
"""

import contextlib
import io
import re
from importlib import import_module

from slimdown.commands.arguments import VERBS, CommandParser, run_command

_BASH = """\
_slimdown() {{
  local verb="${{COMP_WORDS[1]}}" current="${{COMP_WORDS[COMP_CWORD]}}" words
  COMP_WORDBREAKS="${{COMP_WORDBREAKS//=}}"
  if [ "$COMP_CWORD" = 1 ]; then words="{verbs}"; else case "$verb" in
{cases}
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$current"))
  [[ "${{COMPREPLY[0]}}" == *= ]] && compopt -o nospace
}}
complete -o default -F _slimdown slimdown
"""


def main(argv: list[str]) -> int:
    """Print the script of a shell.

    Args:
        argv: The arguments after `completion`.

    Returns:
        The exit code.
    """
    parser = CommandParser("completion", __doc__)
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    shell = parser.parse(argv).shell
    return run_command(lambda: _print_script(shell), "Nothing can be completed:", 1)


def _print_script(shell: str) -> int:
    from slimdown.report.console import print_text

    words = {verb: _list_options(verb) for verb in VERBS}
    words["run"] = words["sizes"] = _list_settings()
    if shell == "fish":
        script, begin = "", "complete -c slimdown -n"
        for verb, text in VERBS.items():
            choices = " ".join(words.get(verb, []))
            script += f"{begin} __fish_use_subcommand -a {verb} -d {text!r}\n"
            script += f"{begin} '__fish_seen_subcommand_from {verb}' -a {choices!r}\n"
    else:
        cases = "\n".join(f'    {verb}) words="{" ".join(words[verb])}" ;;' for verb in words)
        script = "autoload -U bashcompinit && bashcompinit\n" if shell == "zsh" else ""
        script += _BASH.format(verbs=" ".join(VERBS), cases=cases)
    print_text(script)
    return 0


def _list_settings() -> list[str]:
    from slimdown.config.fields import list_settings
    from slimdown.config.paths import list_group_choices
    from slimdown.config.schema import RunConfig

    groups = ("model", "quantization", "dataset", "method", "lora", "train", "keep", "benchmark")
    chosen = [f"{g}={c}" for g in (*groups, "experiment") for c in list_group_choices(g)]
    keys = [key for key in list_settings(RunConfig) if "<" not in key and key not in groups]
    return [*chosen, *(f"{key}=" for key in keys)]


def _list_options(verb: str) -> list[str]:
    """Return the options that --help names."""
    text = io.StringIO()
    if verb != "run":
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            import_module(f"slimdown.commands.{verb}").main(["--help"])
    return sorted(set(re.findall(r"--[a-z][a-z-]+", text.getvalue())))
