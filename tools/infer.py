"""Run ``visionattn infer`` from a clone of the repository."""

import sys

from visionattn.cli import main

if __name__ == "__main__":
    sys.exit(main(["infer", *sys.argv[1:]]))
