"""``python -m w2skd``, as torchrun starts it."""

from w2skd.cli.main import main

main()
