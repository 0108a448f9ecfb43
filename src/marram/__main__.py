"""`python -m marram` is the `marram` program."""

from marram.cli import main

if __name__ == "__main__":
    main()
