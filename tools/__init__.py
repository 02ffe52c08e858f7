"""The command line: one file a subcommand."""

if __name__ != "flowgrad.tools":
    raise ImportError(f"import flowgrad.tools, not {__name__}")
