"""detkit: a registry-driven toolbox for training object detectors.

Importing this package loads neither torch nor any subpackage; each registry imports the modules it
names at the first look-up.
"""

__version__ = "0.1.0"
