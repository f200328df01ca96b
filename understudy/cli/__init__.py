"""The command line: `understudy up | down | status | demo | call | chat | trace | eval`.

    app          the commands and their help; each calls one function of the files below
    failures     errors become one sentence on stderr and an exit code, never a traceback
    startup      a platform's start and stop, with progress
    ask          one question, or a conversation
    traffic      many questions at once
    figures      what an evaluation says about its answers (pure)
    evaluation   rows in, figures out
    demo         the whole platform at work, in one command
    tables       how results look in a terminal

Exit codes: 0 done; 1 it failed; 2 it was asked wrongly; 130 Ctrl-C.
"""

import sys


def main() -> None:
    """Run the command line; what it needs beyond the SDK is imported only now."""
    try:
        from understudy.cli.app import app
    except ModuleNotFoundError as error:
        sys.stderr.write(
            f"The command line needs the package {error.name}: pip install 'understudy[cli]'.\n"
        )
        sys.exit(1)
    app()
