"""The commands of `stepagent`: one module each, whose `main` takes the arguments after its name."""
