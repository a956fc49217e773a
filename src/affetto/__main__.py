"""`python -m affetto`, which is the command `affetto` of that Python."""

from affetto.cli import main

if __name__ == "__main__":
    main()
