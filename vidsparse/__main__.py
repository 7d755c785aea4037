"""Run the command line as ``python -m vidsparse``."""

from vidsparse.cli import main

if __name__ == "__main__":
    main()
