"""Run ``visionattn test`` from a clone of the repository."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["test", *sys.argv[1:]]))
