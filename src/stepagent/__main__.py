"""`python -m stepagent` is the command `stepagent`."""

from stepagent.cli import main

if __name__ == "__main__":
    main()
