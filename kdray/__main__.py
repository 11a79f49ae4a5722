"""`python -m kdray`."""

from kdray.cli import main

if __name__ == "__main__":
    main()
