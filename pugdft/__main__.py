"""``python -m pugdft`` is the ``pugdft`` command; torchrun starts its workers this way."""

from pugdft.cli.main import main

if __name__ == "__main__":
    main()
