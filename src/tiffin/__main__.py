"""``python -m tiffin``: the command line."""

from tiffin.cli.main import entry

if __name__ == "__main__":
    entry()
