"""`python -m kdray`."""

from kdray.cli.app import main

if __name__ == "__main__":
    main()
