"""Run ``visionattn doctor`` from a clone of the repository."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
