"""``python -m fewbits``."""

from fewbits.cli.main import main

main()
