"""Run ``visionattn browse`` from a clone of the repository."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["browse", *sys.argv[1:]]))
