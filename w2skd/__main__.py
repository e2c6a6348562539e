"""``python -m w2skd``, which is what torchrun starts."""

from w2skd.cli.main import main

main()
