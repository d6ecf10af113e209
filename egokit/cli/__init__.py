"""The `egokit` command.

arguments.py  every subcommand's arguments, help and example;  commands.py  what it does
"""
import sys

from egokit.cli.arguments import parser
from egokit.config.build import ConfigError
from egokit.config.names import printable, protect_terminal
from egokit.runs.explain import explained


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    A user's mistake is one line on stderr and exit code 2; any other error keeps its traceback.
    """
    protect_terminal()
    arguments = parser().parse_args(argv)
    try:
        arguments.function(arguments)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where this one stopped", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        # a user's mistake is an error of egokit or a built-in one, but no library's, nor PyTorch's bare RuntimeError
        if type(error).__module__.split(".")[0] not in ("egokit", "builtins") or type(error) is RuntimeError:
            raise
        kept = "" if type(error) in (ConfigError, ValueError) or isinstance(error, OSError) else "\n"
        print(f"egokit: {printable(str(explained(error)), kept)}", file=sys.stderr)
        sys.exit(2)
