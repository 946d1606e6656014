"""``python -m detkit.datasets.shapes FOLDER`` writes the example data by hand."""

import sys

from detkit.datasets.shapes import SPLITS, generate

if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
    sys.exit("usage: python -m detkit.datasets.shapes FOLDER")
for name in SPLITS:
    print(generate(sys.argv[1], name))
